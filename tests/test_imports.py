"""Imports go one way, CrypTen comes in by one door, and `import mpcache` stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpcache

PACKAGE = Path(mpcache.__file__).parent
ROOT = PACKAGE.parent
ROOMS = {"kernels": 0, "protocols": 1, "parties": 2}  # a room imports itself and lower ones
ELSEWHERE = 3
LEAF = "mpcache.errors"
CRYPTEN_DOOR = PACKAGE / "protocols" / "crypten.py"
MODULES = sorted(PACKAGE.rglob("*.py"))


def _height(module: str) -> int:
    """How high the room of a dotted module name is; the package itself counts as nothing."""
    parts = module.split(".")
    return ROOMS.get(parts[1], ELSEWHERE) if len(parts) > 1 else -1


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(source: str, path: Path) -> Iterator[str]:
    """Every module that a source text imports, wherever the statement stands."""
    package = _dotted(path) if path.name == "__init__.py" else _dotted(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base if node.level else [])
            module = ".".join(part for part in (prefix, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and node.args
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def _violations(source: str, path: Path) -> list[str]:
    here = _height(_dotted(path))
    found = []
    for name in _imported(source, path):
        ours = name == "mpcache" or name.startswith("mpcache.")
        leaf = name == LEAF or name.startswith(LEAF + ".")
        if ours and not leaf and here < ELSEWHERE and _height(name) > here:
            found.append(f"{_dotted(path)} imports {name}")
        if name.split(".")[0] == "crypten" and path != CRYPTEN_DOOR:
            found.append(f"{_dotted(path)} imports {name}: only protocols/crypten.py may")
        if name.split(".")[0] in ROOMS or name.split(".")[0] == "configs":
            found.append(f"{_dotted(path)} imports {name} through a root link")
    return found


@pytest.mark.parametrize("path", MODULES, ids=_dotted)
def test_imports_go_one_way(path: Path) -> None:
    assert _violations(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("kernels/ring.py", "import mpcache.protocols.channel", True),
        ("kernels/ring.py", "from mpcache import protocols", True),
        ("kernels/ring.py", "def f():\n    from ..parties import tls", True),
        ("protocols/norm.py", "from mpcache.models.spec import ModelSpec", True),
        ("parties/link.py", "from mpcache.config import RunConfig", True),
        ("parties/link.py", "import importlib\nimportlib.import_module('mpcache.cli')", True),
        ("session.py", "import crypten.mpc", True),
        ("session.py", "from protocols import norm", True),
        ("parties/link.py", "from mpcache.protocols.channel import Spec", False),
        ("kernels/ring.py", "from mpcache.errors import MpcacheError", False),
        ("session.py", "from mpcache.protocols.crypten import load", False),
    ],
)
def test_the_rule_can_be_broken(module: str, source: str, bad: bool) -> None:
    assert bool(_violations(source, PACKAGE / module)) is bad


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import mpcache; new = set(sys.modules) - before;"
        "print(sorted(name for name in new if not name.startswith('mpcache')))"
    )
    assert _python(code) == "[]"


def test_the_help_loads_no_heavy_module() -> None:
    code = (
        "import sys; sys.argv = ['mpcache', '--help']; from mpcache.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'crypten', 'cryptography'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    assert _python(code, stream="stderr") == "[]"


@pytest.mark.parametrize("name", [*ROOMS, "configs"])
def test_the_root_shows_the_rooms(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"mpcache/{name}"
    assert link.is_dir()


def _python(code: str, stream: str = "stdout") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return str(getattr(done, stream)).strip()
