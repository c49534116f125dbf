"""A wheel built from the tree holds `mpcache` and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, links kept as links; nothing is fetched."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("tree") / "mpcache"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "__pycache__", "*.egg-info", ".*_cache"
    )

    def skip(folder: str, names: list[str]) -> set[str]:
        at_root = Path(folder) == ROOT
        return {name for name in ignored(folder, names) if at_root or name == "__pycache__"}

    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    return built


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mpcache"}
    assert len(tops) == 2
    for name in names:
        assert name.endswith((".py", ".yaml", ".safetensors")) or ".dist-info/" in name, name


def test_the_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "mpcache"
    for pattern in ("*.py", "*.yaml", "*.safetensors"):
        for path in package.rglob(pattern):
            assert f"mpcache/{path.relative_to(package).as_posix()}" in names


def test_what_cannot_be_resolved_is_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"demo", "eval", "cuda", "serve", "dev"} <= set(extras)
    listed = " ".join([*project["dependencies"], *(" ".join(extra) for extra in extras.values())])
    assert "crypten" not in listed
    assert "smollm2" not in listed
    assert "--no-deps crypten==" in (ROOT / "Makefile").read_text()
