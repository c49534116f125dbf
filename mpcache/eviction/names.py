"""The names of all cache policies, in the order in which they are shown; needs no torch."""

POLICY_NAMES = (
    "full",
    "mpcache",
    "mpcache-paper",
    "clusterkv",
    "d2o",
    "ems",
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
