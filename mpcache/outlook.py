"""What a token would take at other lengths, with the full cache, on other networks: predicted.

Rounds and bytes are exact, counted from the twin's text; seconds come from this machine's
calibration, where there is one.
"""

from __future__ import annotations

from typing import Any

from mpcache import calibration
from mpcache.calibration import NETWORKS
from mpcache.config import RunConfig
from mpcache.costing import quick
from mpcache.models.spec import ModelSpec
from mpcache.report.compare import FULL

CONTEXTS = (256, 1024, 4096)
Row = dict[str, Any]


def outlook(config: RunConfig, spec: ModelSpec, prompt_tokens: int) -> list[Row]:
    """One decode step after `prompt_tokens` and after `CONTEXTS` that fit into the model's.

    Returns:
        A row a context and cache: the run's own policy and the full cache.
    """
    speeds, _ = calibration.load(config.protocol)
    lengths = {prompt_tokens, *(size for size in CONTEXTS if size + 2 <= spec.context)}
    rows = []
    for context in sorted(lengths):
        for cache in dict.fromkeys((config.cache.policy, FULL)):
            policy = config.cache.model_copy(update={"policy": cache})
            step = config.model_copy(update={"max_new_tokens": 2, "cache": policy})
            found = quick(step, spec, context)
            counts = found.phases()["decode"]
            row = {"context": context, "cache": cache, **counts, "seconds": None}
            if speeds is not None:
                seconds = calibration.seconds_on_networks(
                    speeds, {"token": found.token()}, config.parties
                )
                row["seconds"] = {network: seconds[network]["token"] for network in NETWORKS}
            rows.append(row)
    return rows
