"""The names of all cache policies, in the order in which they are shown; needs no torch."""

POLICY_NAMES = (
    "full",
    "mpcache",
    "mpcache-paper",
    "attention-gate",
    "cake",
    "clusterkv",
    "d2o",
    "ems",
    "fastkv",
    "h2o",
    "kvcrush",
    "quest",
    "scissorhands",
    "snapkv",
    "streaming",
    "tova",
    "treekv",
    "windowkv",
    "oracle",
)
