"""Who may join, and what both ends are told when one may not."""

from __future__ import annotations

import datetime
import json
import os
import socket
import ssl
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mpcache.errors import PeerError, UsageError
from mpcache.parties import tls
from mpcache.parties.handshake import greet
from mpcache.parties.link import hang_up
from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import Identity, client_context, make_keys, server_context
from mpcache.parties.transport import Endpoint, Wires, connect
from mpcache.protocols.ledger import Ledger

from .conftest import hello, meet


def nothing(wires: Wires) -> str:
    return "joined"


def refused(outcomes: list[Any], *words: str) -> None:
    """Both parties ended with exit code 1 and the peer's name, the last two with all `words`."""
    assert len(outcomes) == 2
    for rank, outcome in enumerate(outcomes):
        assert isinstance(outcome, PeerError), (rank, outcome)
        assert outcome.exit_code == 1
        assert str(outcome).startswith(f"party {1 - rank}: ")
        for word in words:
            assert word in str(outcome)


# --- shares of the weights ------------------------------------------------------------------------


def test_shares_of_two_splits_are_refused(identities: list[Identity | None]) -> None:
    hellos = [hello(rank, 2, shares=f"{rank}" * 32) for rank in (0, 1)]
    both = [f"{'0' * 32} at party 0", f"{'1' * 32} at party 1"]
    refused(meet(2, nothing, identities, hellos), "shares differs: ", *both)


def test_who_has_no_shares_agrees_with_all(identities: list[Identity | None]) -> None:
    """As the dealer, beside two parties of one split."""
    hellos = [hello(rank, 3, shares="a" * 32 if rank < 2 else "") for rank in range(3)]
    assert meet(3, nothing, identities, hellos) == ["joined"] * 3


# --- certificates ---------------------------------------------------------------------------------


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    first = make_keys(tmp_path / "k", 3, hosts=["10.0.0.7", "b.example", "::1"])
    assert sorted(p.name for p in (tmp_path / "k").iterdir()) == [
        "ca.pem",
        *(f"party-{rank}.{end}" for rank in range(3) for end in ("key", "pem")),
    ]
    assert first[1] == Identity.of(tmp_path / "k", 1)
    for identity in first:
        assert stat.S_IMODE(identity.key.stat().st_mode) == 0o600
    names = x509.load_pem_x509_certificate(first[1].cert.read_bytes())
    san = names.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["party-1.mpcache", "b.example"]
    before = first[2].key.read_bytes()
    with pytest.raises(UsageError, match=r"ca\.pem exists already"):
        make_keys(tmp_path / "k", 3)
    (tmp_path / "k" / "ca.pem").unlink()
    with pytest.raises(UsageError, match=r"party-0\.pem exists already"):
        make_keys(tmp_path / "k", 3)
    assert first[2].key.read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [{"parties": 0}, {"parties": 2, "hosts": ["a"]}, {"parties": 2, "days": 0}]
)
def test_keys_refuse_senseless_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot make keys"):
        make_keys(tmp_path / "k", **arguments)
    assert not (tmp_path / "k").exists()


def test_files_that_are_no_identity_are_named(keys: list[Identity], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*gone\.pem"):
        server_context(Identity(tmp_path / "gone.pem", keys[0].cert, keys[0].key))
    with pytest.raises(UsageError, match="do not make an identity"):
        client_context(Identity(keys[0].ca, keys[0].cert, keys[1].key))


def test_only_tls_1_3_with_a_certificate(keys: list[Identity]) -> None:
    for context in (server_context(keys[0]), client_context(keys[0])):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED

    def program(wires: Wires) -> str:
        return str(wires._links[1 - wires.rank].sock.version())  # type: ignore[attr-defined]

    assert meet(2, program, list(keys)) == ["TLSv1.3"] * 2


def test_good_certificates_join(keys: list[Identity]) -> None:
    assert meet(3, nothing, list(keys)) == ["joined"] * 3


@pytest.mark.parametrize("wrong", [0, 1])
def test_certificate_of_another_authority(
    keys: list[Identity], other_keys: list[Identity], wrong: int
) -> None:
    identities: list[Identity | None] = [*keys]
    identities[wrong] = other_keys[wrong]
    began = time.monotonic()
    refused(meet(2, nothing, identities), "certificate")
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("wrong", [0, 1])
def test_certificate_that_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """The same authority signs both; one certificate ran out a minute ago."""
    issue = tls._issue

    def late(*args: Any) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        if args[3] == wrong:
            hour, minute = datetime.timedelta(hours=1), datetime.timedelta(minutes=1)
            args = (*args[:-1], (now - hour, now - minute))
        return issue(*args)

    monkeypatch.setattr(tls, "_issue", late)
    outcomes = meet(2, nothing, list(make_keys(tmp_path / "k", 2)))
    refused(outcomes, "certificate", "expired")


def test_certificate_of_another_party(keys: list[Identity]) -> None:
    refused(meet(2, nothing, [keys[0], keys[2]]), "party-2.mpcache", "party-1.mpcache")
    refused(meet(2, nothing, [keys[2], keys[1]]), "party-2.mpcache", "party-0.mpcache")


def test_certificate_of_another_expected_party(keys: list[Identity]) -> None:
    """Party 1 shows party 2's certificate in a run where party 2 is expected as well."""
    outcomes = meet(3, nothing, [keys[0], keys[2], keys[2]], connect_timeout_s=2.0)
    assert isinstance(outcomes[0], PeerError)
    assert isinstance(outcomes[1], PeerError)
    for outcome in outcomes[:2]:
        assert "certificate is for party-2.mpcache, not for party-1.mpcache" in str(outcome)


@pytest.mark.parametrize("plain", [0, 1])
def test_tls_at_one_end_only(keys: list[Identity], plain: int) -> None:
    identities: list[Identity | None] = [*keys]
    identities[plain] = None
    refused(meet(2, nothing, identities), "tls off")


# --- what the parties must agree on ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "theirs", "words"),
    [
        ("version", "0.2", ("version differs", "0.1 at party 0", "0.2 at party 1")),
        ("config_digest", "e" * 64, ("config_digest differs", "cccccccccccc ", "eeeeeeeeeeee ")),
        ("model_digest", "f" * 64, ("model_digest differs", "dddddddddddd ", "ffffffffffff ")),
        ("session", "run-2", ("session differs", "run-1 at party 0", "run-2 at party 1")),
    ],
)
def test_every_field_must_agree(
    identities: list[Identity | None], field: str, theirs: str, words: tuple[str, ...]
) -> None:
    hellos = [hello(0, 2), hello(1, 2, **{field: theirs})]
    for outcome in meet(2, nothing, identities, hellos):
        assert isinstance(outcome, PeerError), outcome
        text = str(outcome)
        for word in (words[0], words[1].split()[0], words[2].split()[0]):
            assert word in text
        assert theirs not in text or len(theirs) < 20


def greeted(first: Any, second: Any, expected: tuple[list[int], list[int]]) -> list[Any]:
    """Both ends of a socket pair: `greet` with a Hello, or raw bytes that are sent instead."""
    outcomes: list[Any] = [None, None]
    socks = socket.socketpair()

    def run(end: int) -> None:
        mine = (first, second)[end]
        socks[end].settimeout(0.5)
        try:
            if isinstance(mine, bytes):
                socks[end].sendall(mine)
                time.sleep(0.2)
            else:
                outcomes[end] = greet(socks[end], mine, expected[end])
        except PeerError as error:
            outcomes[end] = error
        hang_up([socks[end]])

    threads = [threading.Thread(target=run, args=(end,)) for end in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_world_and_rank_must_agree() -> None:
    assert greeted(hello(0, 2), hello(1, 2), ([1], [0])) == [1, 0]
    refused(greeted(hello(0, 2), hello(1, 3), ([1], [0])), "world differs", "2 at", "3 at")
    outcomes = greeted(hello(0, 3), hello(2, 3), ([1], [0]))
    assert "rank is 2, expected 1" in str(outcomes[0])
    assert "party 0: refused this party: rank is 2, expected 1" in str(outcomes[1])


def message(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<I", len(data)) + data


good = {**vars(hello(1, 2))}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\xff\xff\xff\xff", "does not speak mpcache's protocol"),
        (struct.pack("<I", 5) + b"{[[[[", "not one that mpcache sends"),
        (struct.pack("<I", 4000) + b"[" * 4000, "not one that mpcache sends"),
        (message([1]), "not one that mpcache sends"),
        (message({"hello": good, "more": 1}), "not one that mpcache sends"),
        (message({"hello": {**good, "more": 1}}), "other fields"),
        (message({"hello": {**good, "rank": True}}), "rank is not of the right type"),
        (message({"hello": {**good, "world": "2"}}), "world is not of the right type"),
        (message({"hello": {**good, "session": "s" * 201}}), "session is not of the right type"),
        (
            message({"hello": {**good, "version": "\x1b[2J"}}),
            "version differs: 0.1 at party 0, ?[2J at",
        ),
        (message({"refused": "\x1b[2J because"}), "refused this party: ?[2J because"),
        (message({"hello": good}), "the connection ended"),
        (b"", "the connection ended"),
    ],
)
def test_a_greeting_is_checked_strictly(sent: bytes, words: str) -> None:
    outcome = greeted(hello(0, 2), sent, ([1], [0]))[0]
    assert isinstance(outcome, PeerError)
    assert outcome.peer == "party 1"
    assert words in str(outcome)


def test_silence_ends_the_greeting() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.2)
    with pytest.raises(PeerError, match=r"party 1: no answer for 0\.2 s"):
        greet(ours, hello(0, 2), [1])
    theirs.close()


def test_a_port_scan_does_not_end_the_run() -> None:
    addresses = loopback_addresses(2)
    outcomes: list[Any] = []

    def zero() -> None:
        with connect(Endpoint(0, addresses, None), hello(0, 2), Ledger(0, 2)) as wires:
            outcomes.append(nothing(wires))

    thread = threading.Thread(target=zero)
    thread.start()
    while True:
        try:
            socket.create_connection(addresses[0]).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    connect(Endpoint(1, addresses, None), hello(1, 2), Ledger(1, 2)).close()
    thread.join(5)
    assert outcomes == ["joined"]


def test_random_bytes_at_the_port_end_with_a_message(identities: list[Identity | None]) -> None:
    addresses = loopback_addresses(2)
    outcomes: list[Any] = []

    def zero() -> None:
        try:
            connect(Endpoint(0, addresses, identities[0]), hello(0, 2), Ledger(0, 2))
        except PeerError as error:
            outcomes.append(error)

    thread = threading.Thread(target=zero)
    thread.start()
    while True:
        try:
            stranger = socket.create_connection(addresses[0])
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    stranger.sendall(b"\xfe" + os.urandom(200))
    thread.join(5)
    stranger.close()
    assert "party 1: " in str(outcomes[0])
    assert "tls off" in str(outcomes[0])
