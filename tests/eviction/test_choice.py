"""The public counts of MPCache: exact in decimals, consistent for every number of tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.eviction.base import Budget, Kept
from mpcache.eviction.full import Full
from mpcache.eviction.mpcache import MPCache
from mpcache.eviction.registry import POLICIES, make_policy, policy_names

from .harness import policies
from .reference import share_of

PERCENT = [percent / 100 for percent in range(1, 101)]


@pytest.mark.parametrize("clusters", [(32, 16), (16, 16), (12, 3), (1, 1)])
@pytest.mark.parametrize(("coarse_keep", "dynamic_keep"), [(0.5, 0.6), (0.01, 0.3), (1.0, 0.07)])
def test_choices_of_1_to_600_tokens(
    clusters: tuple[int, int], coarse_keep: float, dynamic_keep: float
) -> None:
    policy = MPCache(clusters=clusters, coarse_keep=coarse_keep, dynamic_keep=dynamic_keep)
    big, small = clusters
    for tokens in range(1, 601):
        choice = policy.choice(tokens)
        assert (choice.coarse, choice.fine) == (-(-tokens // big), -(-tokens // small))
        wanted = max(share_of(dynamic_keep, choice.fine), 2)
        coarse = max(share_of(coarse_keep, choice.coarse), 2)
        if choice.coarse > 2:
            assert choice.coarse_picks == min(coarse, choice.coarse) - 2
        left_out = (choice.coarse - min(coarse, choice.coarse)) * (big // small)
        picks = max(min(wanted - 2, choice.fine - 2 - left_out), 0)
        assert choice.picks == picks
        assert choice.selects == (choice.fine > 2 and picks < choice.fine - 2)
        if not choice.selects:
            assert choice.kept == tokens
            continue
        last = tokens - (choice.fine - 1) * small
        assert 1 <= last <= small
        assert choice.kept == (1 + choice.picks) * small + last < tokens


@given(policy=policies, tokens=st.integers(1, 600))
def test_a_choice_is_possible_and_within_budget(policy: MPCache, tokens: int) -> None:
    choice = policy.choice(tokens)
    assert 0 < choice.kept <= tokens
    assert choice.picks >= 0 and choice.coarse_picks >= 0
    if choice.selects:
        least = -(-policy.least // policy.clusters[1])
        assert choice.picks + 2 <= max(share_of(policy.dynamic_keep, choice.fine), least, 2)
        assert choice.coarse_picks <= max(choice.coarse - 2, 0)


def test_counts_are_exact_in_decimals() -> None:
    """0.07 of 100 is 7, though 0.07 * 100 is a little more in floating point."""
    for share, tokens in itertools.product(PERCENT, range(1, 301)):
        policy = MPCache(static_keep=share, dynamic_keep=share, sink=0, recent=0, clusters=(1, 1))
        assert policy.static_kept(tokens) == share_of(share, tokens), (share, tokens)
        if tokens > 2:
            assert policy.choice(tokens).kept == max(share_of(share, tokens), 2)


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(17, (8, 4)), (64, (8, 4)), (65, (16, 8)), (129, (32, 16))]
)
def test_clusters_double_for_long_prompts(tokens: int, sizes: tuple[int, int]) -> None:
    policy = MPCache((8, 4), static_keep=1.0, most_clusters=16)
    assert policy.sized(tokens).clusters == sizes
    # they stay as they are while tokens are added
    sized = policy.sized(tokens)
    counts = tuple(sized.choice(tokens + step).kept for step in range(1, 9))
    assert policy.budget(tokens, 9).dynamic == counts


@pytest.mark.parametrize(("tokens", "attended"), [(33, 33), (40, 36), (100, 36), (1000, 200)])
def test_short_prompts_keep_the_least(tokens: int, attended: int) -> None:
    policy = MPCache((8, 4), static_keep=1.0, least=35, most_clusters=999)
    assert policy.choice(tokens).kept == attended


@pytest.mark.parametrize(
    ("tokens", "kept"), [(1, 1), (19, 19), (20, 20), (21, 20), (22, 20), (23, 21), (100, 90)]
)
def test_sink_and_recent_are_kept_of_short_prompts(tokens: int, kept: int) -> None:
    assert MPCache(static_keep=0.9).static_kept(tokens) == kept


def test_budgets_are_counts() -> None:
    # 225 kept; of 226 and 227 tokens 9 of 15 fine clusters
    policy = MPCache((32, 16), static_keep=0.9, dynamic_keep=0.6)
    assert policy.budget(250, 3) == Budget(225, (8 * 16 + 226 - 224, 8 * 16 + 227 - 224))
    # 4 of 8 coarse clusters: with the last one's, 7 fine ones
    policy = MPCache((32, 16), static_keep=0.9, coarse_keep=0.5, dynamic_keep=0.6)
    assert policy.budget(250, 3) == Budget(225, (6 * 16 + 226 - 224, 6 * 16 + 227 - 224))
    assert policy.budget(250, 1) == Budget(225, ())
    assert Full().budget(63, 4) == Budget(63, (64, 65, 66))


def test_what_was_kept_must_match() -> None:
    budget = Budget(3, (4, 5))
    assert Kept({0: 3, 1: 3}, {0: [4, 5], 1: [4, 5]}).matches(budget)
    for other in (
        Kept({0: 3, 1: 4}, {0: [4, 5]}),
        Kept({0: 3}, {0: [4, 6]}),
        Kept({0: 3}, {0: [4]}),
        Kept({0: 3}, {0: [4, 5], 1: [4, 5, 6]}),
    ):
        assert not other.matches(budget)


def test_policies_by_name() -> None:
    assert make_policy("mpcache", alpha=0.25, unknown=1) == MPCache(alpha=0.25)
    assert make_policy("full", alpha=0.25) == Full()
    assert list(POLICIES) == policy_names() == [kind.name for kind in POLICIES.values()]
    assert [name for name, kind in POLICIES.items() if not kind.oblivious] == ["oracle"]
    with pytest.raises(UsageError, match="'h3o' is unknown; choose one of full, "):
        make_policy("h3o")
