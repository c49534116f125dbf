"""Curves: where points lie, and which numbers stand at the axes."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcache.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, plot, ticks


def _picture(*curves: Curve) -> str:
    return str(plot(curves, "tokens", lambda value: f"{value:g} s", "seconds & tokens"))


def test_a_power_is_a_straight_line_from_corner_to_corner() -> None:
    text = _picture(Curve("full", [(512 * 2**n, 3.0 * 4**n) for n in range(4)]))
    drawn = text.partition('points="')[2].partition('"')[0]
    points = [tuple(map(float, pair.split(","))) for pair in drawn.split()]
    assert points[0] == (LEFT, HEIGHT - BOTTOM) and points[-1] == (WIDTH - RIGHT, TOP)
    for axis in (0, 1):
        steps = [b[axis] - a[axis] for a, b in itertools.pairwise(points)]
        assert steps == pytest.approx([steps[0]] * 3, abs=0.2)  # drawn to a tenth
    assert "<title>full, 4,096: 192 s</title>" in text
    assert "seconds &amp; tokens" in text


def test_what_has_no_length_is_not_drawn() -> None:
    assert plot([Curve("one", [(3, 4.0)])], "x", str, "t") is None
    assert plot([], "x", str, "t") is None
    level = _picture(Curve("level", [(1, 2.0), (9, 2.0)]))
    assert level.count("<circle") == 2


def test_predicted_curves_are_dashed_and_say_so() -> None:
    text = _picture(Curve("a", [(1, 1.0), (2, 2.0)]), Curve("b", [(1, 2.0), (2, 9.0)], dashed=True))
    assert 'class="s0"' in text and 'class="s1 dashed"' in text
    assert "b (predicted)" in text and "a (predicted)" not in text


def test_labels_that_would_meet_are_left_out() -> None:
    text = _picture(Curve("close", [(1000, 1.0), (1001, 2.0), (4000, 3.0)]))
    below = re.findall(rf'y="{HEIGHT - BOTTOM + 16}.0"[^>]*>([\d,]+)<', text)
    assert below == ["4,000", "1,001"]


@given(st.floats(1e-6, 1e9), st.floats(1.0, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, times: float) -> None:
    found = ticks(low, low * times)
    assert 1 <= len(found) <= 6
    assert found == sorted(found)
    assert all(low <= value <= low * times for value in found)
