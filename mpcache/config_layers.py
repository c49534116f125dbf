"""How the layers of a configuration are read and merged, before anything is validated."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mpcache.errors import UsageError

# Keys that replace each other: a layer that sets one of them drops the others from weaker layers.
_PROMPTS = ("prompt", "prompt_file")
_EMULATION = ("name", "rtt_ms", "mbps")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that appears twice is a mistake, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_text(path: str | Path, what: str) -> str:
    """The text of a UTF-8 file; ``-`` reads standard input.

    Raises:
        UsageError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{what} {path} does not exist; give the path of a file") from None
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} {path} is not UTF-8 (byte {error.start}); save it as UTF-8 text"
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """One layer from a YAML file.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a mapping of keys to values.
    """
    text = read_text(path, "the configuration")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UsageError(f"{path}{where} is not YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} is not a mapping; expected lines such as `parties: 2`")
    return values


def shipped() -> dict[str, Path]:
    """Name -> path of the configurations that come with the package."""
    folder = Path(str(resources.files("mpcache"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name_or_path: str) -> Path:
    """The file of a configuration given by path, or by the name of a shipped one.

    Raises:
        UsageError: neither exists.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    raise UsageError(
        f"there is no configuration {name_or_path}{nearest(path.stem, known)}; expected a YAML file"
        f" or one of {', '.join(known)}"
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean X?`` for the closest of `known`, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def parse_network(text: str) -> dict[str, Any]:
    """A layer for ``network``: a preset's name, or ``RTT,MBPS`` such as ``20,100``.

    Raises:
        UsageError: the text is neither.
    """
    if "," not in text:
        return {"name": text}
    try:
        rtt_ms, mbps = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"network {text!r} is not understood; expected local, lan, wan, wan-slow or RTT,MBPS"
            " such as 20,100 (milliseconds, megabits a second)"
        ) from None
    return {"name": "custom", "rtt_ms": rtt_ms, "mbps": mbps}


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """A layer from ``key=value`` texts: dotted keys, values read as YAML.

    Raises:
        UsageError: a text has no ``=``, or its value is not YAML.
    """
    layer: dict[str, Any] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UsageError(
                f"--set {key or text} is not understood; expected key=value such as"
                " --set cache.dynamic_keep=0.5"
            )
        try:
            value = yaml.load(raw, _Loader)
        except yaml.YAMLError:
            raise UsageError(
                f"--set {key}: the value is not YAML; quote it if it is a text"
            ) from None
        for part in reversed(key.split(".")):
            value = {part: value}
        layer = merge(layer, normalise(value))
    return layer


def normalise(layer: dict[str, Any]) -> dict[str, Any]:
    """Spell out the short forms ``network: lan`` and ``cache: full``."""
    layer = dict(layer)
    if isinstance(layer.get("network"), str):
        layer["network"] = parse_network(layer["network"])
    if isinstance(layer.get("cache"), str):
        layer["cache"] = {"policy": layer["cache"]}
    return layer


def merge(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    """Both layers in one; where both set a key `strong` has the word."""
    merged = dict(weak)
    if strong.keys() & set(_PROMPTS):
        for key in _PROMPTS:
            merged.pop(key, None)
    network = strong.get("network")
    if isinstance(network, dict) and "name" in network and isinstance(merged.get("network"), dict):
        kept = {key: value for key, value in merged["network"].items() if key not in _EMULATION}
        merged["network"] = kept
    for key, value in strong.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = {**merged[key], **value}
        merged[key] = value
    return merged
