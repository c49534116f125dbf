"""The embedding of the client's tokens in suite `dealer`: a bit for each entry of the vocabulary.

Party 0 has the table E [vocab, width]; party 1 has E' = E - B, which setup sent, and the tokens.
For each token t:

1. The dealer knows B, party 1's bits a_v (one for each entry) and a bit h of it, and party 0's
   mask q [width]. With P = sum of a_v B[v] it deals shares m0 + m1 = (1 - 2h)(q - P): m0 comes
   from party 0's seed, m1 is the one correction.
2. Party 1 sends c = a XOR the unit vector of t, and as one more bit h XOR a_t.
3. With s = 1 - 2 a_t, the bits satisfy sum c_v E[v] - sum a_v E[v] = s E[t]. Party 0 sends
   d = sum c_v E[v] - q.
4. w = s (1 - 2h) is +1 or -1 as the bit that came last. Party 0's share is w m0, party 1's
   s (d - sum a_v E'[v]) + w m1. Their sum is s (s E[t] + P - q) + s (q - P) = E[t], exactly.

Party 0 sees c and h XOR a_t: uniform bits, since each is masked by its own bit of party 1's seed,
used for this token alone. Party 1 sees m1 and d, masked by m0 and q of party 0's seed. So each
message is uniform whatever the token and the table are, and independent of all else that its
receiver holds.

Where the table is shared, both parties know E' = E - B with B = B0 + B1, party r has B_r, and E[t]
= E'[t] + B1[t] + B0[t]. Party 1, which has t, looks the first two up. B0 is a table that party 0
has: its row comes by the steps above with B0 in the place of E and, at the dealer, of B, so that
what party 1 has of it, E - B, is 0 there. The messages and their masks are the same, and so is what
they tell; looking up sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.bits import bit_product, packed_bytes
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.dealer import DealerSuite, OwnedWeight
from mpcache.protocols.pieces import Piece, Pieces
from mpcache.protocols.secret import Secret, SharedWeight
from mpcache.protocols.tokens import Tokens


class Chosen(Correlation):
    """Bits at party 1, q at party 0, and shares of (1 - 2h)(q - P): see the top of the file.

    The bit h stands behind the vocabulary's; what fills the last byte hides nothing and is sent as
    it is.

    Args:
        mask: yields the table's B [vocab, width] at the dealer.
    """

    def __init__(
        self, count: int, vocab: int, width: int, mask: Callable[[], torch.Tensor]
    ) -> None:
        self.vocab, self.mask = vocab, mask
        bits = (count, packed_bytes(vocab + 1))
        self.pieces = (
            Piece("bits", bits, bits=8, holder=1, narrow=True),
            Piece("q", (count, width), holder=0),
            Piece("m", (count, width), corrected=True),
        )

    def complete(self, whole: Pieces) -> Pieces:
        bits = whole["bits"]
        sums = bit_product(bits, self.mask())
        return {"m": _sign(_bit(bits, self.vocab)) * (whole["q"] - sums)}


def embedded(suite: DealerSuite, tokens: Tokens, table: Secret) -> Secret:
    """The rows of a `table` [vocab, width] at the client's tokens: [tokens, width]. Exact.

    Two messages: about vocab / 8 bytes a token from party 1, and 8 width from party 0.

    Raises:
        MpcacheError: the table is no weight for products, or has another vocabulary.
    """
    vocab, width = table.shape
    if not isinstance(table, OwnedWeight | SharedWeight) or vocab != tokens.vocab:
        raise MpcacheError(
            f"tokens of {tokens.vocab} need a weight matrix of as many rows, not {table!r}"
        )
    if isinstance(table, OwnedWeight):
        return _owned(suite, tokens, width, table.frac, table.share, table.mask)
    first = None if suite.hollow or suite.rank else table.mask
    row = _owned(suite, tokens, width, table.frac, first, table.first)
    if suite.hollow or suite.rank == 0:
        return row
    assert table.mask is not None
    ids = tokens.known().squeeze(1)
    return Secret(row.share + table.opened[ids] + table.mask[ids], table.frac)


def _owned(
    suite: DealerSuite,
    tokens: Tokens,
    width: int,
    frac: int,
    rows: torch.Tensor | None,
    mask: Callable[[], torch.Tensor],
) -> Secret:
    """The rows of a table that party 0 has: see the top of the file.

    Args:
        rows: the table at party 0, it less B at party 1; None there where that is 0.
        mask: yields B at the dealer.
    """
    count, vocab, shape = tokens.count, tokens.vocab, (tokens.count, width)
    pieces = suite.draw(Chosen(count, vocab, width, mask))
    to_owner, to_client = [Spec((count, packed_bytes(vocab + 1)), torch.uint8)], [Spec(shape)]
    if suite.hollow:
        suite.pass_on("chosen", 1, to_owner, list)
        suite.pass_on("row", 0, to_client, list)
        return Secret(torch.empty(shape, dtype=torch.int64, device="meta"), frac)
    if suite.rank == 0:
        (hidden,) = suite.pass_on("chosen", 1, to_owner, list)
        assert rows is not None
        row = bit_product(hidden, rows) - pieces["q"]
        suite.pass_on("row", 0, to_client, lambda: [row])
        return Secret(_sign(_bit(hidden, vocab)) * pieces["m"], frac)
    bits, ids = pieces["bits"], tokens.known()
    turned = _bit(bits, ids)
    hidden = _flipped(bits, ids, vocab, turned)
    suite.pass_on("chosen", 1, to_owner, lambda: [hidden])
    own = 0 if rows is None else bit_product(bits, rows)
    (row,) = suite.pass_on("row", 0, to_client, list)
    share = _sign(turned) * (row - own) + _sign(_bit(hidden, vocab)) * pieces["m"]
    return Secret(share, frac)


def _bit(bits: torch.Tensor, place: torch.Tensor | int) -> torch.Tensor:
    """Bit `place` of each row of packed bits, int64 [rows, 1]; `place` [rows, 1] or one for all."""
    places = torch.as_tensor(place).expand(bits.shape[0], 1)
    return bits.gather(1, places >> 3).to(torch.int64) >> (places & 7) & 1


def _flipped(bits: torch.Tensor, ids: torch.Tensor, vocab: int, last: torch.Tensor) -> torch.Tensor:
    """The packed bits with bit `ids` flipped, and bit `vocab` where `last` [rows, 1] is 1."""
    units = torch.zeros_like(bits)
    units.scatter_(1, ids >> 3, (1 << (ids & 7)).to(torch.uint8))
    units[:, vocab >> 3] ^= (last << (vocab & 7)).to(torch.uint8).squeeze(1)
    return bits ^ units


def _sign(bit: torch.Tensor) -> torch.Tensor:
    """+1 for a bit 0, -1 for a bit 1."""
    return 1 - 2 * bit
