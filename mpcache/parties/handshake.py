"""Before any data flows: both ends say what they are about to run, and each must agree.

1. Each side sends its `Hello`, or a refusal if the certificate alone rules the peer out.
2. Each side compares the peer's `Hello` with its own.
3. Each side says that it agrees, or why not, so that both ends know the outcome. (In TLS 1.3 a
   client learns only at its first read whether its certificate was accepted; this is that read.)

A message is a length (4 bytes, little-endian) and that much JSON, of which every key and type is
checked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from mpcache.errors import PeerError
from mpcache.parties.names import MAX_TEXT, any_of, peer_name, printable
from mpcache.parties.tls import check_name, explain

STEP = "handshake"
_LENGTH = struct.Struct("<I")
_MAX_MESSAGE = 4096  # bytes
_MAX_RANK = 1 << 16
_SHOWN = 12  # characters of a digest in a message


@dataclass(frozen=True)
class Hello:
    """What a party is about to run. All but `rank` must be equal at both ends.

    `shares` names the split that a party's share of the weights is of; who has none, as the dealer,
    leaves it empty and agrees with all.
    """

    version: str
    config_digest: str
    model_digest: str
    rank: int
    world: int
    session: str
    shares: str = ""


class Refused(Exception):
    """This party refuses its peer; the text is told to both."""


def greet(sock: socket.socket, mine: Hello, expected: Sequence[int]) -> int:
    """Agree with the peer on `sock` and return its rank, one of `expected`.

    `sock` is connected, with a timeout set, and through its TLS handshake if there is one.

    Raises:
        PeerError: another version, configuration, model, world, session or rank; a certificate
            for another party; no answer; or the peer refused. The message names field and values.
    """
    peer = any_of(expected)
    try:
        try:
            rank = _agree(sock, mine, expected)
        except Refused as refusal:
            with contextlib.suppress(OSError):
                send(sock, {"refused": str(refusal)[:MAX_TEXT]})
            raise PeerError(peer, STEP, f"refused: {refusal}") from None
        peer = peer_name(rank)
        send(sock, {"agreed": True})
        answer = receive(sock)
        if answer.get("agreed") is not True:
            raise refusal_in(answer)
    except TimeoutError:
        raise PeerError(peer, STEP, f"no answer for {sock.gettimeout():g} s") from None
    except ssl.SSLError as error:
        raise PeerError(peer, STEP, explain(error)) from error
    except (OSError, EOFError):
        hint = "" if isinstance(sock, ssl.SSLSocket) else ": is tls off at this end only?"
        raise PeerError(peer, STEP, f"the connection ended during the greeting{hint}") from None
    except Refused as refusal:
        raise PeerError(peer, STEP, str(refusal)) from None
    return rank


def _agree(sock: socket.socket, mine: Hello, expected: Sequence[int]) -> int:
    if isinstance(sock, ssl.SSLSocket) and (wrong := check_name(sock, expected)):
        raise Refused(wrong)
    send(sock, {"hello": asdict(mine)})
    answer = receive(sock)
    if "refused" in answer:
        raise PeerError(any_of(expected), STEP, str(refusal_in(answer)))
    hello = _parse(answer)
    for field in fields(Hello):
        ours, theirs = getattr(mine, field.name), getattr(hello, field.name)
        if field.name == "rank":
            if theirs not in expected:
                wanted = " or ".join(map(str, expected))
                raise Refused(f"rank is {theirs}, expected {wanted}")
        elif field.name == "shares" and not (ours and theirs):
            continue
        elif ours != theirs:
            raise Refused(
                f"{field.name} differs: {_short(field.name, ours)} at {peer_name(mine.rank)},"
                f" {_short(field.name, theirs)} at {peer_name(hello.rank)}"
            )
    if isinstance(sock, ssl.SSLSocket) and (wrong := check_name(sock, [hello.rank])):
        raise Refused(wrong)
    return hello.rank


def _short(name: str, value: object) -> str:
    text = printable(str(value))
    return text[:_SHOWN] if name.endswith("digest") else text


def refusal_in(answer: dict[str, object]) -> Refused:
    why = printable(str(answer.get("refused", "no reason given")))
    return Refused(f"refused this party: {why}")


def _parse(answer: dict[str, object]) -> Hello:
    """The peer's Hello, every key and type checked."""
    body = answer.get("hello")
    if len(answer) != 1 or not isinstance(body, dict):
        raise Refused("the greeting is not one that mpcache sends")
    if set(body) != {field.name for field in fields(Hello)}:
        raise Refused("the greeting has other fields than this version's")
    for field in fields(Hello):
        value = body[field.name]
        if field.name in ("rank", "world"):
            good = type(value) is int and 0 <= value < _MAX_RANK
        else:
            good = type(value) is str and len(value) <= MAX_TEXT
        if not good:
            raise Refused(f"the greeting's {field.name} is not of the right type or size")
    return Hello(**body)


def send(sock: socket.socket, message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> dict[str, object]:
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if length > _MAX_MESSAGE:
        raise Refused("it does not speak mpcache's protocol: is tls off at one end only?")
    try:
        message = json.loads(_exactly(sock, length))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Refused("the greeting is not one that mpcache sends")
    return message


def _exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes and not one more: what follows belongs to the first frame."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
