"""Public numbers that are the same at every party, to the last bit.

A public number that multiplies shares has to be: shares are as large as the ring, so that parties
whose numbers differ by one unit end with garbage. Libraries round exp, cos or a least-squares fit
as the processor, the threads and even a buffer's address have it. What +, -, *, / and a square
root of IEEE 754 do not give exactly therefore comes from mpmath, with 40 digits, and is rounded
once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mpmath import MPContext

exact: Any = MPContext()
exact.dps = 40


def numbers(values: Iterable[Any]) -> torch.Tensor:
    """The nearest float64 of numbers of `exact`, in one dimension."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def powers_of_two(exponents: Iterable[int]) -> torch.Tensor:
    """2^e for each, float64."""
    return torch.tensor([math.ldexp(1.0, exponent) for exponent in exponents], dtype=torch.float64)


def chebyshev(count: int) -> list[Any]:
    """The zeros of the Chebyshev polynomial of degree `count`, in (-1, 1), falling."""
    return [exact.cos((2 * place + 1) * exact.pi / (2 * count)) for place in range(count)]


def fitted(points: Sequence[Any], values: Sequence[Any], degree: int) -> list[Any]:
    """Coefficients c_0 .. c_degree of the polynomial nearest to `values`, by least squares."""
    powers = exact.matrix([[x**power for power in range(degree + 1)] for x in points])
    return list(exact.lu_solve(powers, exact.matrix(list(values))))


class ExpTable:
    """exp(i / 2^frac + low) for 0 <= i < 2^bits: a product of two numbers from short tables."""

    def __init__(self, low: int, frac: int, bits: int) -> None:
        self.half = bits // 2
        step, size = exact.mpf(2) ** -frac, 1 << self.half
        self.fine = numbers(exact.exp(i * step) for i in range(size))
        self.coarse = numbers(
            exact.exp(low + i * size * step) for i in range(1 << bits - self.half)
        )

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        """float64 of the shape of `index`, integers in [0, 2^bits)."""
        low = index & ((1 << self.half) - 1)
        return self.coarse[index >> self.half] * self.fine[low]


def rounded(value: Any, frac: int) -> int:
    """A number of `exact` as an integer with `frac` fractional bits."""
    return int(exact.nint(exact.ldexp(value, frac)))
