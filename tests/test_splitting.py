"""Shares of weights on disk: exact, private, whole or not there; refused where they do not fit."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.tiny import save_tiny
from protocols.tiny import SPECS, weights
from rich.console import Console
from typer.testing import CliRunner

from mpcache import splitting, weight_memory
from mpcache.cli import app
from mpcache.config import RunConfig, load
from mpcache.errors import MpcacheError, UsageError
from mpcache.kernels.prg import SEED_BYTES
from mpcache.models.fusing import Fused, fused_groups
from mpcache.models.registry import Source, find
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import encoded
from mpcache.stores import terms_of
from mpcache.weight_shares import HEADER, SEED, Header, WeightShares, shares_of, tensor_file, told

QUIET = Console(quiet=True)


class Backend:
    """Random weights; `fail_at` is the read that fails."""

    def __init__(self, spec: ModelSpec, fail_at: int = 0) -> None:
        self.weights, self.left = weights(spec), fail_at

    def check(self) -> None: ...

    def tensor(self, name: str) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise OSError(28, "No space left on device")
        return self.weights[name]

    def tokenizer(self) -> Any:
        raise AssertionError


def source(spec: ModelSpec, fail_at: int = 0) -> Source:
    return Source(spec, "pretrained", "a test", None, Backend(spec, fail_at))


def halves(folder: Path, spec: ModelSpec) -> list[WeightShares]:
    return [WeightShares(folder, rank, spec, 16) for rank in (0, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    before = os.umask(0)  # modes come from the program
    try:
        splitting.split(source(SPECS["llama"]), 16, tmp_path / "split", QUIET)
    finally:
        os.umask(before)
    return tmp_path / "split"


@pytest.mark.parametrize("name", SPECS)
def test_both_shares_are_the_weights_and_neither_is(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    splitting.split(source(spec), 16, tmp_path / "split", QUIET)
    zero, one = halves(tmp_path / "split", spec)
    whole = Fused(spec, weights(spec))
    assert list(zero) == list(one) == list(whole) == list(fused_groups(spec))
    for group, weight in whole.items():
        ring = encoded(weight, 16)
        assert torch.equal(zero[group] + one[group], ring)
        assert not (zero[group] == ring).any() and not (one[group] == ring).any()
        assert torch.equal(one[group], one[group])
    assert told(zero.header) == told(one.header)
    assert (zero.header.weights, zero.header.seed) == ("pretrained", None)


def test_shares_of_one_weight_differ_from_each_other_and_from_split_to_split(
    tmp_path: Path,
) -> None:
    spec = SPECS["llama"]
    for name in ("a", "b"):
        splitting.split(source(spec), 16, tmp_path / name, QUIET)
    a, b = (halves(tmp_path / name, spec) for name in ("a", "b"))
    first, second = "layers.0.ffn.down", "layers.1.ffn.down"
    assert a[0].header.split != b[0].header.split
    for rank in (0, 1):
        assert not (a[rank][first] == b[rank][first]).any()
        assert not (a[rank][first] == a[rank][second]).any()


def test_only_the_owner_may_read_and_party_1_holds_a_seed(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert {path.name for path in (folder / "party-1").iterdir()} == {HEADER, SEED}
    assert (folder / "party-1" / SEED).stat().st_size == SEED_BYTES
    count = len(fused_groups(SPECS["llama"]))
    wanted = {HEADER, *(tensor_file(number) for number in range(1, count + 1))}
    assert {path.name for path in (folder / "party-0").iterdir()} == wanted
    seed = (folder / "party-1" / SEED).read_bytes()
    assert all(seed not in path.read_bytes() for path in (folder / "party-0").iterdir())
    assert {path.name for path in folder.parent.iterdir()} == {"split"}  # nothing aside


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MpcacheError, match=r"cannot be written: No space.*nothing was kept"):
        splitting.split(source(SPECS["llama"], fail_at=5), 16, tmp_path / "split", QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (folder, tmp_path / "empty", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"exists; shares go into a new folder"):
            splitting.split(source(SPECS["llama"]), 16, target, QUIET)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UsageError, match="is not a writable folder"):
        splitting.split(source(SPECS["llama"]), 16, tmp_path / "none" / "split", QUIET)


def test_too_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"the shares of tiny-llama take .* has .* free"):
        splitting.check_room(SPECS["llama"], tmp_path)


# --- what is refused when it is read -------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE: list[tuple[int, str, Any, str]] = [
    (0, tensor_file(3), _flip, r"has a damaged 00003\.safetensors: size or checksum"),
    (0, tensor_file(3), _cut, r"has a damaged 00003\.safetensors: size or checksum"),
    (0, tensor_file(1), os.unlink, r"has no 00001\.safetensors: it holds no party's share"),
    (1, SEED, _flip, "has a damaged seed"),
    (1, SEED, _cut, "has a damaged seed"),
    (0, HEADER, os.unlink, r"has no shares\.json"),
    (0, HEADER, _cut, r"has a damaged shares\.json"),
    (1, HEADER, lambda path: _edit(path, weights="synthetic"), "its checksum differs"),
    (0, HEADER, lambda path: path.chmod(0o640), "others may open shares.json .mode 640."),
    (1, SEED, lambda path: path.chmod(0o604), "others may open seed .mode 604."),
]


@pytest.mark.parametrize(("rank", "name", "spoil", "message"), DAMAGE)
def test_damage_is_refused(folder: Path, rank: int, name: str, spoil: Any, message: str) -> None:
    halves(folder, SPECS["llama"])
    spoil(folder / f"party-{rank}" / name)
    with pytest.raises(UsageError, match=message):
        WeightShares(folder / f"party-{rank}", rank, SPECS["llama"], 16)


def test_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    spec = SPECS["llama"]
    with pytest.raises(UsageError, match="is of party 1, and this is party 0"):
        WeightShares(folder / "party-1", 0, spec, 16)
    with pytest.raises(UsageError, match="is a share of tiny-llama, and this run's model tiny-opt"):
        WeightShares(folder, 0, SPECS["opt"], 16)
    with pytest.raises(UsageError, match="has 16 fractional bits, and this run 12"):
        WeightShares(folder, 0, spec, 12)
    with pytest.raises(UsageError, match="does not exist; give one that `mpcache split` wrote"):
        WeightShares(tmp_path / "none", 0, spec, 16)
    assert shares_of(load(None, {}), 0, spec) is None
    with pytest.raises(UsageError, match="sharing: shared needs this party's share"):
        shares_of(load(None, {"sharing": "shared"}), 0, spec)
    values = {"sharing": "shared", "shares": str(folder)}
    found = shares_of(load(None, values), 1, spec)
    assert found is not None and found.header.rank == 1


def test_launch_refuses_mixed_shares_and_those_of_other_weights(
    folder: Path, tmp_path: Path
) -> None:
    spec = SPECS["llama"]
    config = shared(folder)
    splitting.check_shares(config, source(spec))
    other = source(spec)
    assert isinstance(other.backend, Backend)
    other.backend.weights = weights(spec, seed=2)
    with pytest.raises(UsageError, match="are of other weights than tiny-llama"):
        splitting.check_shares(config, other)
    synthetic = Source(spec, "synthetic", "synthetic, seed 0", "NO WEIGHTS", Backend(spec))
    with pytest.raises(UsageError, match=r"of pretrained weights, and launch's own.*NO WEIGHTS"):
        splitting.check_shares(config, synthetic)
    splitting.split(source(spec), 16, tmp_path / "other", QUIET)
    shutil.rmtree(folder / "party-1")
    shutil.copytree(tmp_path / "other" / "party-1", folder / "party-1")
    with pytest.raises(UsageError, match="are of two different splits"):
        splitting.check_shares(config, source(spec))


def shared(folder: Path | None = None, **changes: Any) -> RunConfig:
    values = {"sharing": "shared", **({"shares": str(folder)} if folder else {}), **changes}
    return load(None, values)


def test_launchs_own_shares_are_gone_afterwards(tmp_path: Path) -> None:
    spec = SPECS["llama"]
    with splitting.ready(shared(), source(spec), QUIET) as config:
        assert config.shares is not None
        folder = Path(config.shares)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        zero, one = halves(folder, spec)
        name = "layers.0.ffn.down"
        weight = encoded(Fused(spec, weights(spec))[name], 16)
        assert torch.equal(zero[name] + one[name], weight)
    assert not folder.parent.exists()
    given = shared(tmp_path)
    with splitting.ready(given, source(spec), QUIET) as config:
        assert config is given


# --- the command, the configuration, memory ------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    arguments = ["split", "--model", str(model), "--out", str(tmp_path / "split")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "keep no copy: both together are the weights" in done.stdout.replace("\n", " ")
    spec = find(str(model)).spec
    zero, _ = halves(tmp_path / "split", spec)
    size = sum(8 * share.numel() for share in zero.values())
    assert splitting.split_size(spec) == size
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists; shares go into a new folder" in again.stderr


def test_synthetic_weights_stay_marked(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    values = {"model": str(model), "weights": "synthetic", "seed": 7}
    assert splitting.split_main(load(None, values), tmp_path / "split", QUIET) == 0
    spec = find(str(model)).spec
    for half in halves(tmp_path / "split", spec):
        assert (half.header.weights, half.header.seed) == ("synthetic", 7)
    config = shared(tmp_path / "split", **values)
    splitting.check_shares(config, find(str(model), "synthetic", 7))
    with pytest.raises(UsageError, match=r"synthetic weights \(seed 7\), and launch's"):
        splitting.check_shares(config, find(str(model)))


def test_a_header_survives_being_written() -> None:
    header = Header("1", "s", 1, "m", "d", "synthetic", 3, 16, {"a": (2, 3)}, {})
    assert Header.from_json(header.to_json()) == header


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "crypten"}, "sharing: shared is for protocol dealer"),
        ({"parties": 3}, "sharing: shared is for protocol dealer"),
        ({"cache": "attention-gate"}, "has gates, which are weights"),
        ({"sharing": "owner", "shares": "x"}, "is read with sharing: shared alone"),
        ({"sharing": "both"}, "expected owner"),
    ],
)
def test_configurations_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(None, {"sharing": "shared", **values})


def test_a_store_fits_one_way_of_sharing() -> None:
    spec = SPECS["llama"]
    owner, other = (terms_of(config, spec, 5) for config in (load(None, {}), shared()))
    assert {name for name in owner if owner[name] != other[name]} == {"sharing"}


def test_memory_is_16_bytes_a_weight_at_each_party(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["opt"]
    groups = fused_groups(spec)
    added = [name for name, g in groups.items() if len(g.shape) == 1 or name == "embed.positions"]
    wanted = 0
    for name, group in groups.items():
        wanted += torch.Size(group.shape).numel() * (8 if name in added else 16)
    assert weight_memory.shared_bytes(spec) == wanted
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": wanted}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    weight_memory.check_memory(shared(), spec, rank=1)
    with pytest.raises(UsageError, match="the parties take"):
        weight_memory.check_memory(shared(), spec)
    pages["SC_PHYS_PAGES"] = wanted - 1
    with pytest.raises(UsageError, match="party 1 takes"):
        weight_memory.check_memory(shared(), spec, rank=1)
    pages["SC_PHYS_PAGES"] = 2 * wanted
    weight_memory.check_memory(shared(), spec)
