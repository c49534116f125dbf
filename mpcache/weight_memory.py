"""Memory that a run's weights take, and a refusal where there is less."""

from __future__ import annotations

import math
import os

from mpcache.config import RunConfig
from mpcache.errors import UsageError
from mpcache.models.decoder import ADDED
from mpcache.models.fusing import fused_groups
from mpcache.models.spec import ModelSpec

# Bytes a weight that a suite needs at the least: in suite dealer 2 at the owner and 8 at party 1;
# in suite crypten 8 at each party, and half as much while the largest products are under way.
_OWNED = 2 + 8
_CRYPTEN = 8 + 4
# Where weights are shared, each party has the opened W - B and its share of B; of what is added
# its share alone.
_MULTIPLIED, _ADDED = 8 + 8, 8


def shared_bytes(spec: ModelSpec) -> int:
    """Bytes of a party's shared weights, a tied head counted for itself."""
    return sum(
        math.prod(group.shape)
        * (_MULTIPLIED if len(group.shape) == 2 and name not in ADDED else _ADDED)
        for name, group in fused_groups(spec).items()
    )


def weight_bytes(config: RunConfig, spec: ModelSpec) -> int:
    """Bytes that all parties need for their weights together, at the least."""
    if config.sharing == "shared":
        return config.parties * shared_bytes(spec)
    if config.protocol == "crypten":
        return config.parties * _CRYPTEN * spec.parameters
    return _OWNED * spec.parameters


def check_memory(config: RunConfig, spec: ModelSpec, rank: int | None = None) -> None:
    """Refuse a model whose shares cannot fit, instead of being killed half-way.

    Args:
        rank: the one party that runs here, where weights are shared; None for all of them.

    Raises:
        UsageError: says how much it takes and how much there is.
    """
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return
    needed = weight_bytes(config, spec)
    if rank is not None:
        needed //= config.parties
    if needed > available:
        who = "the parties take" if rank is None else f"party {rank} takes"
        advice = "choose a smaller model"
        if rank is None:
            advice += ", or run each party on a host of its own (mpcache party)"
        raise UsageError(
            f"{spec.name} has {spec.parameters / 1e9:.1f} billion weights: {who}"
            f" {needed / 1e9:.0f} GB, and this machine has {available / 1e9:.0f} GB; {advice}"
        )
