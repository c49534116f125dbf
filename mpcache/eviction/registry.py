"""Cache policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpcache.errors import UsageError
from mpcache.eviction.attention_gate import AttentionGate
from mpcache.eviction.base import Policy
from mpcache.eviction.cake import Cake
from mpcache.eviction.clusterkv import ClusterKV
from mpcache.eviction.d2o import D2O
from mpcache.eviction.ems import EMS
from mpcache.eviction.fastkv import FastKV
from mpcache.eviction.full import Full
from mpcache.eviction.h2o import H2O
from mpcache.eviction.kvcrush import KVCrush
from mpcache.eviction.mpcache import MPCache, share_of
from mpcache.eviction.mpcache_paper import MPCachePaper
from mpcache.eviction.names import POLICY_NAMES
from mpcache.eviction.oracle import Oracle
from mpcache.eviction.quest import Quest
from mpcache.eviction.scissorhands import Scissorhands
from mpcache.eviction.snapkv import SnapKV
from mpcache.eviction.streaming import Streaming
from mpcache.eviction.tova import TOVA
from mpcache.eviction.treekv import TreeKV
from mpcache.eviction.windowkv import WindowKV

KINDS: tuple[type[Policy], ...] = (
    Full, MPCache, MPCachePaper, AttentionGate, Cake, ClusterKV, D2O, EMS, FastKV, H2O, KVCrush,
    Quest, Scissorhands, SnapKV, Streaming, TOVA, TreeKV, WindowKV, Oracle,
)  # fmt: skip
POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in KINDS}


def make_policy(name: str, **options: Any) -> Policy:
    """The policy `name` with `options` for its fields; options it does not have are ignored.

    Raises:
        UsageError: no such policy.
    """
    if name not in POLICIES:
        raise UsageError(f"cache policy {name!r} is unknown; choose one of {', '.join(POLICIES)}")
    kind = POLICIES[name]
    fields = getattr(kind, "__dataclass_fields__", {})
    return kind(**{key: value for key, value in options.items() if key in fields})


def configured(name: str, prompt_tokens: int, options: Mapping[str, Any]) -> Policy:
    """The policy that a configuration's section `cache` asks for.

    `mpcache` reads the section's fields; the others attend to the share `keep` of the prompt, and
    `cake` gives its layers what `preferences` say.
    """
    if name == MPCache.name:
        return make_policy(name, **options)
    if name in POLICIES and not POLICIES[name].oblivious:
        raise UsageError(
            f"cache policy {name} runs in plaintext only, in `mpcache eval`; choose another one"
        )
    policy = policy_at(name, max(1, share_of(options["keep"], prompt_tokens)), prompt_tokens)
    if isinstance(policy, Cake):
        return replace(policy, preferences=tuple(options.get("preferences", ())))
    return policy


def policy_names() -> list[str]:
    """All policies, in the order in which they are shown."""
    return list(POLICY_NAMES)


def policy_at(name: str, budget_tokens: int, prompt_tokens: int) -> Policy:
    """The policy `name` at its standard options, attending to about `budget_tokens` a step.

    Args:
        budget_tokens: tokens attended to in a decode step after a prompt of `prompt_tokens`.

    Raises:
        UsageError: no such policy, or a budget outside 1 to `prompt_tokens`.
    """
    if name not in POLICIES:
        raise UsageError(f"cache policy {name!r} is unknown; choose one of {', '.join(POLICIES)}")
    if not 1 <= budget_tokens <= prompt_tokens:
        raise UsageError(f"budget {budget_tokens}: expected 1 to {prompt_tokens} tokens")
    return POLICIES[name].at(budget_tokens, prompt_tokens)
