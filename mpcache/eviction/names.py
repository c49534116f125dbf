"""The names of all cache policies, in the order in which they are shown; needs no torch."""

POLICY_NAMES = ("full", "mpcache")
