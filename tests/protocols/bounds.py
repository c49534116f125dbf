"""How far a result on shares may be from exact arithmetic on the same inputs, in units.

`cut` is what one truncation may lose: under 1 unit with two parties, under 3 with three. Every
bound is elementwise and first order; `SECOND_ORDER` covers products of errors.
"""

from __future__ import annotations

import math

import torch

from .harness import UNIT

SECOND_ORDER = 1.05


def scale(x: torch.Tensor, factor: torch.Tensor | float, cut: float) -> torch.Tensor:
    """|x| times half a unit of the factor, which has extra bits when it is small, and one cut."""
    largest = torch.as_tensor(factor, dtype=torch.float64).abs().max().item()
    extra = max(0, math.floor(-math.log2(max(largest, 2.0**-8))))
    return x.abs() * 2.0 ** -(extra + 1) + cut


def rotary(x: torch.Tensor, cut: float) -> torch.Tensor:
    """Half a unit of cos and of sin, each times its element, and one cut for both."""
    half = x.shape[-1] // 2
    pair = (x[..., :half].abs() + x[..., half:].abs()) / 2
    return torch.cat([pair, pair], -1) + cut


def exponential(x: torch.Tensor, cut: float) -> torch.Tensor:
    """exp(x) from z = x / 32: Horner's three products, then five squarings.

    * z is cut once: 32 cut e^x.
    * Horner at |z| <= 1/2: the cuts e1 = 1 + 1/16 (z / 6), e2 = |z| e1 + 1, e3 = |z| e2 + 1;
      a squaring doubles what it is given times the value: 32 e^(31 x / 32) e3.
    * Squaring k cuts once, and 5 - k squarings follow.
    * What Taylor's sum leaves out: z^4 / 24.
    """
    z = x.abs() / 32
    horner = z * (z * (cut + 1 / 16) + cut) + cut
    squarings = sum(2 ** (5 - k) * torch.exp(x * (1 - 2.0 ** (k - 5))) for k in range(1, 6))
    taylor = z**4 / 24 / UNIT
    return SECOND_ORDER * (
        32 * cut * torch.exp(x) + 32 * torch.exp(x * 31 / 32) * (horner + taylor) + cut * squarings
    )


def decay(x: torch.Tensor, cut: float, clip: float = 16.0) -> torch.Tensor:
    """That of exp where x is clipped, and e^-clip for what is below."""
    return exponential(x.clamp(min=-clip), cut) + math.exp(-clip) / UNIT


def logistic(e: torch.Tensor, cut: float) -> torch.Tensor:
    """That of 1 / (1 + e) without a factor."""
    return reciprocal(1 + e, 2.0, cut)


def reciprocal(x: torch.Tensor, upper: float, cut: float) -> torch.Tensor:
    """1/x: with x brought to z = f x in [1, 2), the last Newton step y (2 - z y) cuts twice.

    * z is cut once, which moves 1/z by 1/z^2; the inner product's cut counts y = 1/z times, the
      outer one's once; with `f` (at most 1) comes one more product.
    * 0.1 for what three Newton steps leave of a first guess within 9%: 0.09^8 = 0.0003 units.
    """
    wide = upper > 2
    factor = torch.exp2(-torch.floor(torch.log2(x))) if wide else torch.ones_like(x)
    z = x * factor
    inner = cut * ((1 / z**2 if wide else 0) + 1 / z + 1) + 0.1
    return SECOND_ORDER * (factor * inner + (cut if wide else 0))


def inverse(x: torch.Tensor, cut: float) -> torch.Tensor:
    """1/x in suite `dealer`, from a line on t = f x in [0.75, 1.5): relative to the result

    * t is cut: 2^-16 / t, below 1.34 units of 2^-16.
    * An index may come out one too low, so that a line serves up to 2 segments of 2^-7 from where
      it begins, with nodes at 0.22 and 1.28 segments: at most (2 - 0.22) (2 - 1.28) = 1.29 squared
      segments times half of the second derivative, 1.29 * 2^-14 / t^2: below 9.2 units of 2^-16.
    * Half a unit of a slope, 2^-21, times 1.5.

    And a cut at 26 fractional bits.
    """
    return SECOND_ORDER * (cut * 1.34 + 9.2 + 0.03) / x + cut * 2.0**-26 / UNIT


def inverse_sqrt(x: torch.Tensor, cut: float) -> torch.Tensor:
    """1/sqrt(x): the last Newton step y (3 - x y^2) / 2 cuts y^2, x y^2, the product, the half.

    0.1 for what three Newton steps leave of a first guess within 12%: 4e-7 of it.
    """
    y = torch.rsqrt(x)
    return SECOND_ORDER * (cut * ((y * (x + 1) + 1) / 2 + 1) + 0.1)


def softmax(
    x: torch.Tensor, cut: float, clip: float = 16.0, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """p = e / S: errors of e, of their sum, of 1 / S, one cut; and e^-16 where it was clipped."""
    shown = torch.ones_like(x) if visible is None else visible.expand(x.shape).to(x.dtype)
    x = x.masked_fill(shown == 0, -1e9)
    d = (x - x.amax(-1, keepdim=True)).clamp(min=-clip)
    e = torch.exp(d) * shown
    off = (exponential(d, cut) + math.exp(-clip) / UNIT) * shown
    total = e.sum(-1, keepdim=True)
    inverse = reciprocal(total, float(x.shape[-1]), cut) + off.sum(-1, keepdim=True) / total**2
    return SECOND_ORDER * (off / total + e * inverse + cut * shown) + cut * (1 - shown)


def silu(x: torch.Tensor, cut: float, clip: float = 16.0) -> torch.Tensor:
    """|x| times the error of the sigmoid, that of 1 / (1 + exp(-|x|)), and one cut."""
    d = -x.abs().clamp(max=clip)
    below = 1 + torch.exp(d)
    sigmoid = (exponential(d, cut) + math.exp(-clip) / UNIT) / below**2
    return SECOND_ORDER * x.abs() * (sigmoid + reciprocal(below, 2.0, cut)) + cut


GELU_TAIL = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)


def gelu(x: torch.Tensor, cut: float) -> torch.Tensor:
    """max(x, 0), and t e P(k) for t = |x| up to 5.6, e = exp(-t^2 / 2), k = 1 / (1 + 0.2316419 t).

    * e: t^2 / 2 is cut once, and then exp's own error; k: its argument's scale, and 1/x's own.
    * Horner in k: each step doubles in what k and the sum before it are off by, and cuts once;
      half a unit for each coefficient.
    * The two products; 7.5e-8 of the polynomial.
    """
    t = x.abs().clamp(max=5.6)
    e, k = torch.exp(-(t**2) / 2), 1 / (1 + 0.2316419 * t)
    e_off = exponential(-(t**2) / 2, cut) + e * cut
    k_off = reciprocal(1 / k, 4.0, cut) + k**2 * scale(t, 0.2316419, cut)
    tail, off = torch.zeros_like(t), torch.zeros_like(t)
    for factor in reversed(GELU_TAIL):
        inner = tail + factor / math.sqrt(2 * math.pi)
        off = inner.abs() * k_off + k * (off + 0.5) + cut
        tail = k * inner
    h = t * (tail.abs() * e_off + e * off + cut) + cut
    return SECOND_ORDER * (h + 7.5e-8 / UNIT * t)


def norm(
    x: torch.Tensor, gain: torch.Tensor, eps: float, centered: bool, cut: float
) -> torch.Tensor:
    """Rows x' = f x with a root sum of squares R in [8, 16); y = x' r sqrt(n) / 8, r = 8 / R.

    * x' is cut once: sqrt(n) / 8 at most in y, and as much times |y| through R.
    * r is off by `inverse_sqrt` (5.5 cuts of r at most, at r = 1/2) and half of what the mean
      square is off (one cut, half a unit of rounding).
    * r sqrt(n) / 8, at least sqrt(n) / 16, is cut once more and its factor rounded; then y and
      gain y are cut.
    * `centered`: the row's mean is off by its product with 1/n, which counts 1 / rms times in y
      and, through the sum of squares, as much times |y|.
    """
    size = x.shape[-1]
    root = math.sqrt(size)
    shift = torch.zeros_like(x[..., :1])
    if centered:
        total = x.sum(-1, keepdim=True)
        shift = scale(total, 1 / size, cut)
        x = x - total / size
    inverse_rms = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = (x * inverse_rms).abs()
    moved = shift * inverse_rms
    relative = 6 * cut + 0.5 + cut * root / 8 + (2 * cut + 0.5) * 16 / root + moved
    return SECOND_ORDER * (gain.abs() * (y * relative + cut * root / 8 + moved + cut) + cut)


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cut: float,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores off by D move a probability by 2 D of itself; then the softmax's own error.

    Shapes as in `softmax.attention`.
    """
    factor = queries.shape[-1] ** -0.5
    scores = torch.einsum("hgqd,hkd->hgqk", queries * factor, keys)
    off = torch.einsum("hgqd,hkd->hgqk", scale(queries, factor, cut), keys.abs()) + cut
    shown = torch.ones_like(scores) if visible is None else visible.expand(scores.shape)
    probabilities = torch.softmax(scores.masked_fill(shown == 0, -math.inf), -1)
    moved = 2 * off.amax(-1, keepdim=True) * probabilities
    moved = moved + softmax(scores, cut, visible=shown)
    return SECOND_ORDER * torch.einsum("hgqk,hkd->hgqd", moved, values.abs()) + cut
