"""Cache policies by name."""

from __future__ import annotations

from typing import Any

from mpcache.errors import UsageError
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.eviction.mpcache import MPCache

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Full, MPCache)}


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
