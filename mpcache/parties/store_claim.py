"""Two parties claim one session of their stores together, before any data flows.

1. Each says which store it has, what that was dealt for, and which session is its next.
2. Stores and terms must be equal. The session is the larger of the two numbers: what one party
   has used nobody uses again, whatever was done to the other's folder.
3. Each claims the session in its own store (`Store.claim`): marked as used, then opened.
4. Each says so, and starts when the other has said so too.

Messages are those of the handshake, over the same connection: over TLS unless it is off.
"""

from __future__ import annotations

import contextlib
import socket

from mpcache.errors import PeerError
from mpcache.parties.handshake import Refused, receive, refusal_in, send
from mpcache.parties.names import peer_name
from mpcache.parties.store import Session, Store

STEP = "store"
_SHOWN = 12  # characters of a digest or of a store's name in a message


def claim_together(sock: socket.socket, store: Store, peer_rank: int, timeout_s: float) -> Session:
    """Agree with the peer at `sock` on a session, and claim it.

    `store` is closed afterwards, whatever happens.

    Raises:
        PeerError: the peer has another store or is at its end, refused, or is gone.
        UsageError, MpcacheError: this party's own store cannot be used; the peer was told.
    """
    peer = peer_name(peer_rank)
    session = None
    with contextlib.closing(store):
        try:
            sock.settimeout(timeout_s)
            number = _agree(sock, store, peer)
            session = store.claim(number)
            send(sock, {"claimed": number})
            answer = receive(sock)
            if answer != {"claimed": number}:
                raise refusal_in(answer)
            return session
        except BaseException as error:
            if session is not None:
                session.close()
            raise _told(sock, peer, timeout_s, error) from None


def _agree(sock: socket.socket, store: Store, peer: str) -> int:
    """The number of the session to claim."""
    mine = {"store": store.header.store, "terms": store.header.digest, "next": store.next}
    send(sock, mine)
    theirs = receive(sock)
    if "refused" in theirs:
        raise refusal_in(theirs)
    if {key: type(value) for key, value in theirs.items()} != {
        key: type(value) for key, value in mine.items()
    }:
        raise _Unequal("the peer sent something else than where its store is")
    for key, what in (
        ("store", "store differs"),
        ("terms", "what the store was dealt for differs"),
    ):
        if theirs[key] != mine[key]:
            raise _Unequal(
                f"{what}: {str(mine[key])[:_SHOWN]} at {peer_name(store.header.rank)},"
                f" {str(theirs[key])[:_SHOWN]} at {peer}; give both parties the folders of one"
                " `mpcache deal`"
            )
    number, total = max(store.next, int(str(theirs["next"]))), len(store.header.sessions)
    if not 0 <= number < total:
        raise _Unequal(f"{peer} is at session {number}, and the store has {total}")
    return number


class _Unequal(Refused):
    """This party refuses its peer's store; the text is told to both."""


def _told(sock: socket.socket, peer: str, timeout_s: float, error: BaseException) -> BaseException:
    """What to raise for `error`, after the peer was told as well as can be done."""
    own = isinstance(error, _Unequal) or not isinstance(error, Refused | OSError | EOFError)
    if own:
        # A message about a file is for this host alone.
        why = str(error) if isinstance(error, Refused) else "its store cannot be used"
        with contextlib.suppress(OSError):
            send(sock, {"refused": why})
    if isinstance(error, _Unequal):
        return PeerError(peer, STEP, f"refused: {error}")
    if isinstance(error, Refused):
        return PeerError(peer, STEP, str(error))
    if isinstance(error, TimeoutError):
        return PeerError(peer, STEP, f"no answer for {timeout_s:g} s")
    if isinstance(error, OSError | EOFError):
        return PeerError(peer, STEP, "the connection ended while a session was being claimed")
    return error
