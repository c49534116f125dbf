"""Defaults < YAML < command line; every mistake is one line that names what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcache import config as configuration
from mpcache.config import RunConfig, digest, load, read_prompt, to_yaml
from mpcache.config_layers import find, parse_set, shipped
from mpcache.errors import UsageError


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A function that writes a YAML text and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_command_line_over_yaml_over_defaults(written: Any) -> None:
    path = written("parties: 3\ncache: {alpha: 0.25, sink: 2}\n")
    config = load(path, parse_set(["cache.alpha=0.75", "network=wan"]))
    assert config.parties == 3
    assert (config.cache.alpha, config.cache.sink, config.cache.recent) == (0.75, 2, 16)
    assert (config.network.rtt_ms, config.network.mbps) == (40.0, 400.0)
    assert config.ring.frac == 16


@pytest.mark.parametrize(
    ("yaml_text", "sets", "expected"),
    [
        ("network: {name: custom, rtt_ms: 5, mbps: 1}", ["network=lan"], ("lan", 0.3, 3000.0)),
        ("network: wan", ["network=5,10"], ("custom", 5.0, 10.0)),
        ("network: {tls: off}", ["network=wan-slow"], ("wan-slow", 80.0, 100.0)),
        ("", [], ("local", 0.0, 0.0)),
    ],
)
def test_a_stronger_layer_replaces_the_network(
    written: Any, yaml_text: str, sets: list[str], expected: tuple[str, float, float]
) -> None:
    network = load(written(yaml_text), parse_set(sets)).network
    assert (network.name, network.rtt_ms, network.mbps) == expected
    assert network.tls is ("off" not in yaml_text)
    assert network.emulated is (expected[0] != "local")


def test_a_stronger_layer_replaces_the_prompt(written: Any, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from a file\n")
    config = load(written("prompt: from yaml"), {"prompt_file": str(tmp_path / "prompt.txt")})
    assert config.prompt is None
    assert read_prompt(config) == "from a file"
    assert read_prompt(RunConfig()) == configuration.BUILT_IN_PROMPT


@pytest.mark.parametrize(
    ("yaml_text", "sets", "parts"),
    [
        ("cache: {alhpa: 1}", [], ("unknown key cache.alhpa", "run.yaml", "cache.alpha?")),
        ("dynamic_keep: 1.5", [], ("unknown key dynamic_keep", "cache.dynamic_keep?")),
        ("", ["cach.alpha=1"], ("unknown key cach", "did you mean cache?")),
        ("", ["zzz=1"], ("unknown key zzz", "expected one of parties")),
        ("cache: {dynamic_keep: 1.5}", [], ("cache.dynamic_keep", "1.5", "at most 1", "run.yaml")),
        ("", ["cache.static_keep=0"], ("cache.static_keep", "over 0", "command line")),
        ("", ["cache.coarse_keep=-1"], ("cache.coarse_keep", "over 0")),
        ("", ["cache.alpha=.nan"], ("cache.alpha", "nan", "0 to 1")),
        ("", ["cache.sink=-1"], ("cache.sink", "0 or more")),
        ("", ["cache.clusters=[32, 15]"], ("cache.clusters", "does not divide")),
        ("", ["cache.clusters=[32]"], ("cache.clusters", "two sizes")),
        ("", ["cache=h3o"], ("cache.policy", "h3o", "one of full, ")),
        ("parties: 1", [], ("parties: 1", "2 or 3", "run.yaml")),
        ("parties: 4", [], ("parties: 4", "2 or 3")),
        ("", ["parties=true"], ("parties", "2 or 3")),
        ("", ["protocol=replicated"], ("replicated", "not available in this version", "crypten")),
        ("", ["protocol=dealer", "parties=3"], ("dealer", "2 parties", "crypten")),
        ("", ["ring.frac=25"], ("ring.frac: 25", "8 to 24")),
        ("", ["temperature=-1"], ("temperature: -1", "from 0", "to 10")),
        ("", ["temperature=.nan"], ("temperature: nan",)),
        ("temperature: .inf", [], ("temperature: inf", "run.yaml")),
        ("temperature: 1", ["protocol=crypten"], ("temperature 1", "not cryptographic")),
        ("", ["ring.frac=18"], ("ring.frac: 18", "dealer", "16 fractional bits", "crypten")),
        ("", ["max_new_tokens=0"], ("max_new_tokens: 0", "1 or more")),
        ("", ["max_new_tokens=2.5"], ("max_new_tokens: 2.5",)),
        ("", ["network=foo"], ("network.name", "foo", "wan-slow")),
        ("", ["network=5,x"], ("5,x", "RTT,MBPS")),
        ("", ["network.name=custom"], ("network", "both rtt_ms and mbps")),
        ("network: lan", ["network.rtt_ms=5"], ("network", "lan has rtt_ms 0.3")),
        ("", ["network.timeout_s=0"], ("network.timeout_s", "over 0")),
        ("", ["network.addresses=[a]"], ("'a' is not host:port",)),
        ("", ["network.addresses=['a:1']"], ("1 addresses for 3 processes", "the dealer last")),
        ("", ["network.addresses=['a:1','a:1']"], ("two parties have one address",)),
        ("", ["owner=1"], ("owner and client are both 1",)),
        ("", ["client=2"], ("client: 2 is no rank", "0 to 1")),
        ("prompt: a\nprompt_file: b", [], ("both set",)),
        ("prompt: ''", [], ("the prompt is empty",)),
        ("parties: 2\nparties: 3", [], ("parties appears twice", "line 2")),
        ("a: b: c", [], ("line 1 is not YAML",)),
        ("- 1", [], ("not a mapping",)),
        ("", ["parties"], ("--set parties", "key=value")),
    ],
)
def test_each_mistake_is_named(
    written: Any, yaml_text: str, sets: list[str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        load(written(yaml_text), parse_set(sets))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert caught.value.exit_code == 2


def test_two_mistakes_are_two_lines(written: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(written("parties: 5\nring: {frac: 3}\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_no_message_repeats_the_prompt() -> None:
    for sets in ({"prompt": ["my secret"]}, {"prompt_file": {"my secret": 1}}):
        with pytest.raises(UsageError) as caught:
            load(None, sets)
        assert "my secret" not in str(caught.value)
    assert "my secret" not in repr(RunConfig(prompt="my secret"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    for path, words in ((bad, "not UTF-8"), (empty, "is empty"), (tmp_path / "no", "not exist")):
        with pytest.raises(UsageError, match=words):
            read_prompt(RunConfig(prompt_file=str(path)))
    with pytest.raises(UsageError, match="not UTF-8"):
        load(bad)


def test_shipped_configurations_load() -> None:
    assert set(shipped()) == {
        "demo-2pc",
        "demo-3pc",
        "opt-1.3b-2pc",
        "full-cache",
        "crypten-baseline",
    }
    for name in shipped():
        load(find(name))
    with pytest.raises(UsageError, match=r"did you mean demo-2pc\?"):
        find("demo-2p")


def test_with_a_store_the_dealer_needs_no_address() -> None:
    two, three = ["a:1", "b:2"], ["a:1", "b:2", "c:3"]
    for addresses in (two, three):
        made = load(None, {"store": "x", "network": {"addresses": addresses}})
        assert made.processes == 2
    assert load(None, {"network": {"addresses": three}}).processes == 3
    with pytest.raises(UsageError, match="1 addresses for 2 processes"):
        load(None, {"store": "x", "network": {"addresses": two[:1]}})


def test_digest_holds_what_parties_must_agree_on() -> None:
    base = digest(RunConfig())
    local = {
        "prompt": "x",
        "report": "elsewhere",
        "store": "stock/party-1",
        "threads": 3,
        "network": {"addresses": ["a:1", "b:2", "c:3"], "keys": "k", "timeout_s": 5.0},
    }
    assert digest(load(None, local)) == base
    for sets in (
        *("cache.alpha=0.5", "max_new_tokens=17", "network=lan", "network.tls=off"),
        "temperature=0.5",
    ):
        assert digest(load(None, parse_set([sets]))) != base
    assert digest(load(None, parse_set(["temperature=0"]))) == base


@pytest.mark.parametrize("letter", ["\x85", "\u2028", "\ufeff", "\r", "\t", "\x00", "\U0001f600"])
def test_letters_that_yaml_treats_as_special_read_back(letter: str, tmp_path: Path) -> None:
    config = RunConfig(prompt=f"a{letter}b")
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config, redact_prompt=False), encoding="utf-8")
    assert load(path) == config


@st.composite
def _configs(draw: st.DrawFn) -> RunConfig:
    parties = draw(st.sampled_from([2, 3]))
    owner, client = draw(st.permutations(range(parties)))[:2]
    fine, share = draw(st.integers(1, 64)), st.floats(0.01, 1.0)
    network = draw(st.sampled_from(["local", "lan", "wan", "wan-slow", "custom"]))
    emulation = {"rtt_ms": draw(st.floats(0, 500)), "mbps": draw(st.floats(0, 1e5))}
    dealer = (parties, owner, client) == (2, 0, 1)
    return load(
        None,
        {
            "parties": parties,
            "protocol": "dealer" if dealer else "crypten",
            "owner": owner,
            "client": client,
            "seed": draw(st.integers(0, 2**63 - 1)),
            "prompt": draw(st.none() | st.text(min_size=1).filter(str.strip)),
            "ring": {"frac": 16 if dealer else draw(st.integers(8, 24))},
            "cache": {
                "clusters": [fine * draw(st.integers(1, 8)), fine],
                "alpha": draw(st.floats(0, 1)),
                "static_keep": draw(share),
                "dynamic_keep": draw(share),
                "summary": draw(st.sampled_from(["extrema", "mean"])),
            },
            "network": {"name": network, **(emulation if network == "custom" else {})},
        },
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=_configs())
def test_the_resolved_configuration_reads_back(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config, redact_prompt=False), encoding="utf-8")
    assert load(path) == config
    path.write_text(to_yaml(config), encoding="utf-8")
    redacted = load(path)
    assert redacted.prompt is None
    assert redacted == configuration.without_prompt(config)
    assert digest(redacted) == digest(config)


def test_three_parties_run_crypten_unless_told_otherwise() -> None:
    assert load(None, {"parties": 2}).protocol == "dealer"
    assert load(None, {"parties": 3}).protocol == "crypten"
    assert load(None, {"parties": 2, "protocol": "crypten"}).protocol == "crypten"
