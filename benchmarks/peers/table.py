"""One table of mpcache (both suites) and its peers, from the lines that each of them measured.

python benchmarks/peers/table.py --ours runs/peers/ours --peers runs/peers/spu.jsonl [--write FILE]
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from mpcache import __version__
from mpcache.benchmarking.readme import fill
from mpcache.benchmarking.sweep import read_lines
from mpcache.errors import UsageError
from mpcache.report import tables
from mpcache.report.files import write_atomic
from mpcache.report.machine import describe_machine

LAYER = "one decoder layer, T=1024"
HEAD = ("what", "system", "seconds", "least to most", "sent, most", "rounds or send actions")
Row = dict[str, Any]


def ours(folders: list[Path]) -> list[Row]:
    """Rows of `mpcache bench` in the usual setting, on a network that is not emulated."""
    found = []
    for path in [path for folder in folders for path in sorted(folder.glob("*.jsonl"))]:
        for row in read_lines(path):
            layer = row["kind"] == "decode" and row["context"] == 1024 and row["layers"] == 1
            usual = row["parties"] == 2 and not (row["profile"] or row["emulated"])
            if not usual or not (layer or row["kind"] == "ops"):
                continue
            cache = "full" if row.get("cache") == "full" else f"{row.get('cache')} 20%"
            system = f"mpcache {row['version']}, {row['protocol']}"
            if row["protocol"] == "crypten":
                system += f" ({metadata.version('crypten')})"
            what = f"{LAYER}, {cache}" if layer else row["operator"]
            row |= {"what": what, "system": system, "count": row["rounds"]}
            found += [row, _plain(row)]
    return list({(row["what"], row["system"]): row for row in found}.values())


def _plain(row: Row) -> Row:
    """The same in plaintext, as it was timed beside a row."""
    system = f"plaintext, torch {row['machine']['torch']}"
    nothing = {"sent_bytes": [], "count": None}
    return {**row, "system": system, "seconds": row["plaintext_seconds"], **nothing}


def theirs(path: Path) -> list[Row]:
    """Rows of a peer's script."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            {
                **row,
                "what": row["operator"],
                "system": f"{row['system']}, {row['protocol']}",
                "count": row["send_actions"],
            }
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(f"{path} holds no lines of a peer; run `make bench-peers`") from None


def markdown(rows: list[Row], peers: list[Row]) -> str:
    """The table, grouped by what was measured, in the order of the peers' lines."""
    order = list(dict.fromkeys(row["what"] for row in peers))
    order += [what for what in dict.fromkeys(row["what"] for row in rows) if what.startswith(LAYER)]
    order = list(dict.fromkeys(order))
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    for what in order:
        same = [row for row in (*rows, *peers) if row["what"] == what]
        for row in sorted(same, key=lambda row: row["seconds"]["median"]):
            seconds, sent = row["seconds"], row["sent_bytes"]
            spread = f"{tables.in_seconds(seconds['min'])} to {tables.in_seconds(seconds['max'])}"
            cells = (
                *(what, row["system"], tables.in_seconds(seconds["median"]), spread),
                tables.in_bytes(max(sent)) if sent else "-",
                "-" if row["count"] is None else f"{row['count']:,}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Every input is secret; mpcache's weights are known to their owner, SPU's to nobody."
        " mpcache's dealt randomness was made before, and party 1's masks multiplied with the"
        " weights; neither is in the times. ABY3 needs no dealt randomness,"
        " SEMI2K makes its own. SPU talks over brpc on loopback, one process a party; mpcache over"
        " a socket pair. Medians. Measured, mpcache"
        f" {__version__}, on {tables.machine({'machine': describe_machine()})}."
    )
    return "\n".join(lines) + "\n\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ours", type=Path, nargs="+", default=[Path("runs/peers/ours")])
    parser.add_argument("--peers", type=Path, default=Path("runs/peers/spu.jsonl"))
    parser.add_argument("--write", type=Path, help="a file with the markers of `bench peers`")
    options = parser.parse_args()
    text = markdown(ours(options.ours), theirs(options.peers))
    if options.write is None:
        print(text)
        return
    try:
        page = options.write.read_text(encoding="utf-8")
        mode = options.write.stat().st_mode
        write_atomic(options.write, fill(page, {"peers": text}, str(options.write)))
        options.write.chmod(mode)
    except (OSError, UsageError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
