"""The words of a report, for a reader who meets them first."""

from __future__ import annotations

from mpcache.report.markup import Markup, join, tag

WORDS = (
    (
        "secret-shared",
        "Every value is split into random-looking shares, one a party; only together do they say"
        " anything. The parties compute on shares and never see values.",
    ),
    ("plaintext twin", "The same program on ordinary numbers, here on the same machine."),
    ("prefill, decode", "Reading the prompt at once, and then writing one token after the other."),
    (
        "round",
        "A step in which a party must wait for a peer's message. On a far network each costs half"
        " a round trip, whatever is sent.",
    ),
    (
        "dealer, dealt bytes",
        "A third process that sees no data and hands out random numbers that fit together; it can"
        " work before there is a prompt.",
    ),
    (
        "cache, policy",
        "What the model remembers of earlier tokens, and the rule by which only a part of it is"
        " attended to. full keeps all of it.",
    ),
    ("opening", "A value that leaves the shares, to whom and why. The answer opens to the client."),
    (
        "measured, predicted, emulated",
        "Taken from clocks and counters of this run; computed without running; delays added inside"
        " the transport to act like a slower network.",
    ),
)


def words_section() -> Markup:
    """A list of the words, folded."""
    entries = [join([tag("dt", word), tag("dd", said)]) for word, said in WORDS]
    return tag("details", tag("summary", "Words used on this page"), tag("dl", *entries))
