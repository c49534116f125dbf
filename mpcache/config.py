"""The configuration of a run: frozen, validated, every unknown key refused by name.

Layers, weakest first: the defaults here, a YAML file, the command line. `load` merges them and
turns every complaint into a `UsageError` of one line a mistake. The prompt is the client's secret:
it is left out of `to_yaml` and of `digest` unless asked for, and no message repeats it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mpcache.errors import UsageError
from mpcache.eviction.names import POLICY_NAMES

AVAILABLE_PROTOCOLS = ("dealer", "crypten")
PRESETS: dict[str, tuple[float, float]] = {  # name -> (rtt_ms, mbps); 0 mbps is unlimited
    "local": (0.0, 0.0),
    "lan": (0.3, 3000.0),
    "wan": (40.0, 400.0),
    "wan-slow": (80.0, 100.0),
}
BUILT_IN_PROMPT = (
    "Honey bees live in large groups called colonies. Each colony has one queen, a few hundred"
    " drones and many thousands of workers. The workers gather nectar from flowers and turn it"
    " into honey, which feeds the colony through the winter. What do the workers do?"
)
MOST_TEMPERATURE = 10.0  # noise times it leaves logits room: see `protocols.groups`
# What the parties need not agree on: the client's secret, and what concerns one host alone.
_LOCAL_KEYS = ("prompt", "prompt_file", "report", "store", "shares", "threads", "device")
_LOCAL_NETWORK_KEYS = ("addresses", "keys", "timeout_s", "connect_timeout_s")

Share = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RingConfig(_Section):
    """Fixed point over Z/2^64."""

    frac: int = Field(16, ge=8, le=24, description="a number of fractional bits from 8 to 24")


class CacheConfig(_Section):
    """What the key/value cache keeps; the policies are in `mpcache.eviction`."""

    policy: str = Field("mpcache", description=f"one of {', '.join(POLICY_NAMES)}")
    keep: Share = Field(
        0.2,
        description="the share of prompt tokens that policies other than mpcache attend to,"
        " over 0 and at most 1",
    )
    preferences: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        strict=False,
        description="a list of whole numbers from 1, one a layer, in proportion to which cake cuts"
        " its budget, or none for those that were measured",
    )
    clusters: tuple[int, int] = Field(
        (24, 12),
        strict=False,
        description="two sizes in tokens, [coarse, fine], the second dividing the first",
    )
    alpha: float = Field(
        0.6, ge=0, le=1, description="the weight of the maximum in a summary, from 0 to 1"
    )
    static_keep: Share = Field(
        0.7, description="the share of prompt tokens kept after prefill, over 0 and at most 1"
    )
    coarse_keep: Share = Field(
        1.0, description="the share of coarse clusters kept in a step, over 0 and at most 1"
    )
    dynamic_keep: Share = Field(
        0.2, description="the share of fine clusters kept in a step, over 0 and at most 1"
    )
    least: int = Field(
        64, ge=0, description="a number of tokens attended to in any case, 0 or more"
    )
    observe: int = Field(
        16,
        ge=0,
        description="a number of last queries that judge importance, or 0 for a fifth of them",
    )
    pooled: int = Field(
        7,
        ge=1,
        description="an odd number of neighbours over which a token's importance is summed",
    )
    sink: int = Field(4, ge=0, description="a number of first tokens that always stay, 0 or more")
    recent: int = Field(16, ge=0, description="a number of last tokens that always stay, 0 or more")
    share_layers: bool = Field(
        False, description="true or false: layers (2,3), (4,5), ... share one selection"
    )
    summary: Literal["extrema", "mean"] = Field("mean", description="extrema or mean")
    gather: Literal["scores", "kv"] = Field("scores", description="scores or kv")
    per_head: bool = Field(True, description="true or false: each query head chooses for itself")
    most_clusters: int = Field(
        64,
        ge=4,
        description="a number of fine clusters, 4 or more, above which they double in size",
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in POLICY_NAMES:
            raise ValueError("no such policy")
        return name

    @field_validator("clusters")
    @classmethod
    def _nested(cls, sizes: tuple[int, int]) -> tuple[int, int]:
        if min(sizes) < 1 or sizes[0] % sizes[1]:
            raise ValueError("the second does not divide the first")
        return sizes

    @field_validator("pooled")
    @classmethod
    def _around(cls, count: int) -> int:
        if count % 2 == 0:
            raise ValueError("an even number has no middle")
        return count


class NetworkConfig(_Section):
    """The wire between the parties, and the network that it emulates."""

    name: Literal["local", "lan", "wan", "wan-slow", "custom"] = Field(
        "local", description="local, lan, wan, wan-slow, or custom with rtt_ms and mbps"
    )
    rtt_ms: float = Field(0.0, ge=0, description="a round-trip time in milliseconds, 0 or more")
    mbps: float = Field(0.0, ge=0, description="megabits a second, or 0 for no limit")
    tls: bool = Field(True, description="on or off")
    timeout_s: float = Field(120.0, gt=0, description="seconds to wait for a peer, over 0")
    connect_timeout_s: float = Field(30.0, gt=0, description="seconds to wait at the start, over 0")
    addresses: tuple[str, ...] = Field(
        (), strict=False, description="a list of host:port, one a party, or none"
    )
    keys: str | None = Field(None, description="the folder that `mpcache keys` wrote, or nothing")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("name", "local")
        if name == "custom" and not {"rtt_ms", "mbps"} <= data.keys():
            raise ValueError("a custom network needs both rtt_ms and mbps")
        if not isinstance(name, str) or name not in PRESETS:
            return data
        preset = dict(zip(("rtt_ms", "mbps"), PRESETS[name], strict=True))
        for key, value in preset.items():
            if data.get(key, value) != value:
                raise ValueError(f"{name} has {key} {value:g}; for another value use name: custom")
        return {**data, **preset}

    @field_validator("addresses")
    @classmethod
    def _host_and_port(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{address!r} is not host:port")
        if len(set(addresses)) != len(addresses):
            raise ValueError("two parties have one address")
        return addresses

    @property
    def emulated(self) -> bool:
        """Whether the transport delays delivery."""
        return self.rtt_ms > 0 or self.mbps > 0


class RunConfig(_Section):
    """Everything that decides a run. Counts are in tokens, sizes in bytes, times in seconds."""

    parties: Literal[2, 3] = Field(2, description="2 or 3")
    protocol: Literal["dealer", "replicated", "crypten"] = Field(
        "dealer", description="dealer (2 parties, the default there) or crypten (2 or 3)"
    )
    model: str = Field(
        "smollm2", min_length=1, description="a name that `mpcache models` lists, or a folder"
    )
    weights: Literal["auto", "required", "synthetic"] = Field(
        "auto", description="auto, required or synthetic"
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="a whole number from 0 for synthetic weights"
    )
    prompt: str | None = Field(None, description="a text of at least one character", repr=False)
    prompt_file: str | None = Field(None, description="a file of UTF-8 text", repr=False)
    chat: bool = Field(True, description="true or false: use the model's chat form where known")
    max_new_tokens: int = Field(16, ge=1, description="a number of tokens, 1 or more")
    temperature: float = Field(
        0.0,
        ge=0,
        le=MOST_TEMPERATURE,
        description=f"a number from 0 (the likeliest token) to {MOST_TEMPERATURE:g}",
    )
    verify: bool = Field(False, description="true or false: open logits to compare them")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="cpu or cuda, where the plaintext twin works; shares stay on the CPU"
    )
    report: str | None = Field(None, description="a folder, or nothing for runs/<id>")
    store: str | None = Field(
        None, min_length=1, description="a folder of correlations dealt ahead, or nothing"
    )
    sharing: Literal["owner", "shared"] = Field(
        "owner",
        description="owner (party 0 has the weights) or shared (each party a share, protocol"
        " dealer)",
    )
    shares: str | None = Field(
        None, min_length=1, description="a folder that `mpcache split` wrote, or nothing"
    )
    ring: RingConfig = RingConfig()
    truncation: Literal["exact", "local"] = Field(
        "exact", description="exact or local (protocol crypten has local alone)"
    )
    profile: Literal["lan", "wan"] = Field(
        "lan", description="lan or wan: which network protocol dealer chooses its ways for"
    )
    owner: int = Field(0, ge=0, description="the rank of the party that owns the model")
    client: int = Field(1, ge=0, description="the rank of the party that has the prompt")
    threads: int = Field(0, ge=0, description="threads a party, or 0 to choose")
    cache: CacheConfig = CacheConfig()
    network: NetworkConfig = NetworkConfig()

    @model_validator(mode="before")
    @classmethod
    def _usual_protocol(cls, data: Any) -> Any:
        """Three parties have no dealer suite: unless told otherwise they run crypten."""
        if isinstance(data, dict) and data.get("parties") == 3:
            data = {"protocol": "crypten", **data}
        if isinstance(data, dict) and data.get("protocol") == "crypten":
            data = {"truncation": "local", **data}
        return data

    @field_validator("protocol")
    @classmethod
    def _built(cls, protocol: str) -> str:
        if protocol not in AVAILABLE_PROTOCOLS:
            raise ValueError("it is not available in this version")
        return protocol

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str | None) -> str | None:
        if prompt is not None and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError("it is not UTF-8")
        if prompt is not None and not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt

    @model_validator(mode="after")
    def _agree(self) -> RunConfig:
        for role, rank in (("owner", self.owner), ("client", self.client)):
            if rank >= self.parties:
                raise ValueError(
                    f"{role}: {rank} is no rank of {self.parties} parties;"
                    f" expected 0 to {self.parties - 1}"
                )
        if self.owner == self.client:
            raise ValueError(
                f"owner and client are both {self.owner}: one party would hold the weights and the"
                " prompt; give them different ranks"
            )
        if self.protocol == "dealer" and (self.parties, self.owner, self.client) != (2, 0, 1):
            raise ValueError(
                "protocol dealer is for 2 parties, the owner 0 and the client 1; for 3 parties use"
                " protocol: crypten"
            )
        if self.protocol == "crypten" and self.truncation != "local":
            raise ValueError("truncation: protocol crypten truncates locally; expected local")
        if self.protocol == "dealer" and self.ring.frac != 16:
            raise ValueError(
                f"ring.frac: {self.ring.frac} is not allowed with protocol dealer, whose tables are"
                " for 16 fractional bits; leave it out, or set protocol: crypten"
            )
        if self.store is not None and self.protocol != "dealer":
            raise ValueError(
                f"store: protocol {self.protocol} takes nothing from a store; leave it out or set"
                " protocol: dealer"
            )
        self._check_sharing()
        if self.temperature and self.protocol != "dealer":
            raise ValueError(
                f"temperature {self.temperature:g}: protocol {self.protocol} does not draw tokens,"
                " since its randomness is not cryptographic; set protocol: dealer (2 parties), or"
                " temperature: 0"
            )
        # With a store the dealer's address is not needed, and may stay.
        allowed = {self.processes, self.parties + (self.protocol == "dealer")}
        if self.network.addresses and len(self.network.addresses) not in allowed:
            last = ", the dealer last" if self.protocol == "dealer" else ""
            raise ValueError(
                f"network.addresses: {len(self.network.addresses)} addresses for {self.processes}"
                f" processes; expected one each, in the order of their ranks{last}"
            )
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("prompt and prompt_file are both set; keep one of them")
        return self

    def _check_sharing(self) -> None:
        if self.sharing == "shared" and self.protocol != "dealer":
            raise ValueError(
                f"sharing: shared is for protocol dealer (2 parties); protocol {self.protocol}"
                " shares the weights of their owner anyway: leave sharing out"
            )
        if self.sharing == "shared" and self.cache.policy == "attention-gate":
            raise ValueError(
                "cache.policy: attention-gate has gates, which are weights that party 0 would have"
                " in the clear; choose another policy, or sharing: owner"
            )
        if self.shares is not None and self.sharing != "shared":
            raise ValueError(
                "shares: a folder of shares is read with sharing: shared alone; set that, or leave"
                " shares out"
            )

    @property
    def processes(self) -> int:
        """How many processes a run has: its parties, and the dealer where it is live."""
        return self.parties + (self.protocol == "dealer" and self.store is None)


def load(yaml_path: Path | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Merge defaults < the YAML file < `overrides` (nested mappings) into a validated RunConfig.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value is not allowed.
    """
    from mpcache.config_layers import merge, normalise, read_yaml
    from mpcache.config_messages import explain

    from_file = normalise(read_yaml(yaml_path)) if yaml_path else {}
    from_caller = normalise(overrides or {})
    merged = merge(from_file, from_caller)
    layers = {"on the command line": from_caller, f"in {yaml_path}": from_file}
    return explain(RunConfig, merged, layers)


def digest(config: RunConfig) -> str:
    """SHA-256 over what all parties must agree on, as 64 hexadecimal digits.

    The prompt, the report's folder and what concerns one host alone are not part of it.
    """
    values = config.model_dump(mode="json")
    for key in _LOCAL_KEYS:
        del values[key]
    for key in _LOCAL_NETWORK_KEYS:
        del values["network"][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def without_prompt(config: RunConfig) -> RunConfig:
    """The same configuration without the client's secret."""
    return config.model_copy(update={"prompt": None, "prompt_file": None})


def to_dict(config: RunConfig, redact_prompt: bool = True) -> dict[str, Any]:
    """The resolved configuration as plain values; without the prompt's keys if redacted."""
    values = config.model_dump(mode="json")
    if redact_prompt:
        del values["prompt"], values["prompt_file"]
    return values


def to_yaml(config: RunConfig, redact_prompt: bool = True) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(to_dict(config, redact_prompt), sort_keys=False)


def read_prompt(config: RunConfig) -> str:
    """The client's prompt: its text, its file (``-`` is standard input), or the built-in one.

    Raises:
        UsageError: the file is missing, unreadable, not UTF-8 or empty.
    """
    if config.prompt is not None:
        return config.prompt
    if config.prompt_file is None:
        return BUILT_IN_PROMPT
    from mpcache.config_layers import read_text

    text = read_text(config.prompt_file, "the prompt file").strip()
    if not text:
        raise UsageError(
            f"the prompt file {config.prompt_file} is empty; expected UTF-8 text: write the"
            " prompt into it or use --prompt"
        )
    return text


def refuse_gpu(config: RunConfig) -> None:
    """What works on shares or correlations works on the CPU.

    Raises:
        UsageError: `device` is cuda.
    """
    if config.device == "cuda":
        raise UsageError(
            "device cuda is for the plaintext twin (launch, generate, eval); parties and the dealer"
            " work on the CPU: leave device out, or say device: cpu"
        )
