"""The next token: the position of the greatest element, as it is or with noise on it."""

from __future__ import annotations

import torch

from mpcache.errors import UsageError
from mpcache.protocols import gumbel
from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.comparison import at_least
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.groups import KEEP, greatest
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.reach import Reached, within
from mpcache.protocols.secret import Secret

APART = within("difference", 12)  # of elements of a row, noise included


class Argmax(Operation):
    """Position of the greatest element in the last dimension, as an integer.

    A tournament that carries values and positions: ceil(log2 n) comparisons deep. Exact; of two
    equal elements either may win. x may have more fractional bits than the setting.
    """

    name = "argmax"

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return x.argmax(-1)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        size = x.shape[-1]
        x = machine.settle(x)
        start = machine.shift(Secret(x.share * 0, 0), torch.arange(size, dtype=torch.float64))
        both = machine.stack([x, Secret(start.share, x.frac)])
        while both.shape[-1] > 1:
            half = both.shape[-1] // 2
            left, right, rest = both[..., :half], both[..., half : 2 * half], both[..., 2 * half :]
            wins = at_least(machine, left[0], right[0]).unsqueeze(0)
            both = right + multiply(machine, left - right, wins)
            both = machine.cat([both, rest], -1) if rest.shape[-1] else both
        return Secret(both.share[1].squeeze(-1), 0)

    def run_dealer(self, machine: SecureMachine, x: Secret) -> Secret:
        """By groups: see `groups`. The winner is less than two units of 2^-12 below the greatest;
        elements of a row stay within 2^12 of each other; the result is for opening alone."""
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        return greatest(suite, x)

    def reaches(self, result: Value, x: Value) -> Reached:
        yield APART, x.amax(-1) - x.amin(-1)


class Sample(Operation):
    """A position in the last dimension, drawn from softmax(x / temperature).

    The greatest of x + temperature times Gumbel noise: see `gumbel`. With a dealer, who alone
    knows the noise, it costs what `Argmax` costs, since noise moves masks that are there anyway:
    see `groups.Winners`. It counts to 2^-12 then, as x does, and elements of x + temperature g
    stay as near together as there.

    Args:
        temperature: public, over 0.
    """

    name = "sample"

    def plain(self, machine: PlainMachine, x: Value, temperature: float) -> Value:
        noise = gumbel.fresh(x.shape).to(x.device)
        return (x.to(torch.float64) + temperature * noise).argmax(-1)

    def run(self, machine: SecureMachine, x: Secret, temperature: float) -> Secret:
        raise UsageError(
            f"suite {machine.suite.name} does not draw tokens: its randomness is not cryptographic;"
            " use protocol dealer, or temperature 0"
        )

    def run_dealer(self, machine: SecureMachine, x: Secret, temperature: float) -> Secret:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)

        def noise(key: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
            units = gumbel.from_key(key, shape) * (temperature * 2.0**KEEP)
            return torch.round(units).to(torch.int64)

        return greatest(suite, x, noise)

    def reaches(self, result: Value, x: Value, temperature: float) -> Reached:
        yield APART, x.amax(-1) - x.amin(-1) + temperature * gumbel.SPREAD


argmax = Argmax()
sample = Sample()
