"""Headless Chromium for tests that look at a page: measured in a frame of the given width."""

from __future__ import annotations

import html
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

NAMES = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find() -> str:
    """The browser's path; the test is skipped where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no headless browser: none of {', '.join(NAMES)} is on PATH")


def _run(folder: Path, *arguments: str) -> str:
    profile = folder / "profile"
    command = [find(), *FLAGS, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def framed(page: str, width: int, height: int) -> str:
    """A page that shows `page` at `width` pixels and writes down what it measures.

    A window cannot be as narrow as a phone, a frame can.
    """
    return (
        f'<!DOCTYPE html><body style="margin:0"><iframe id="f" style="border:0;width:{width}px;'
        f'height:{height}px" srcdoc="{html.escape(page)}"></iframe><pre id="r"></pre><script>'
        "f.onload = () => { const d = f.contentDocument, w = d.documentElement;"
        " for (const x of d.querySelectorAll('details')) x.open = true;"
        " r.textContent = 'scroll=' + w.scrollWidth + ' client=' + w.clientWidth"
        " + ' loaded=' + f.contentWindow.performance.getEntriesByType('resource').length; }"
        "</script>"
    )


def printed(page: str, folder: Path) -> bytes:
    """The page as a PDF, as a printer gets it."""
    path, target = folder / "page.html", folder / "page.pdf"
    path.write_text(page, encoding="utf-8")
    _run(folder, "--no-pdf-header-footer", f"--print-to-pdf={target}", path.as_uri())
    return target.read_bytes()


def measure(page: str, width: int, folder: Path) -> dict[str, int]:
    """Widths of content and window, and how many resources were fetched; all details open."""
    path = folder / "frame.html"
    path.write_text(framed(page, width, 800), encoding="utf-8")
    shown = _run(folder, "--dump-dom", path.as_uri())
    found = shown.partition('<pre id="r">')[2].partition("</pre>")[0]
    return {key: int(value) for key, _, value in (part.partition("=") for part in found.split())}


def screenshot(page: str, width: int, height: int, folder: Path, dark: bool = False) -> list[bytes]:
    """The rows of pixels of the page, as its PNG has them, 3 or 4 bytes a pixel."""
    path, image = folder / "frame.html", folder / f"{width}.png"
    path.write_text(framed(page, width, height), encoding="utf-8")
    size = f"--window-size={max(width, 600)},{height}"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(folder, "--hide-scrollbars", scheme, size, f"--screenshot={image}", path.as_uri())
    return _rows(image.read_bytes())


def _rows(png: bytes) -> list[bytes]:
    """Decode an 8-bit PNG that is not interlaced."""
    at, data, head = 8, b"", b""
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + length]
        head = body if kind == b"IHDR" else head
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    assert depth == 8 and colour in (2, 6) and head[12] == 0
    step = 3 if colour == 2 else 4
    raw, stride = zlib.decompress(data), width * step
    rows, before = [], bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 :][:stride])
        _unfilter(kind, line, before, step)
        rows.append(bytes(line))
        before = line
    return rows


def _unfilter(kind: int, line: bytearray, before: bytearray, step: int) -> None:
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        up, corner = before[i], before[i - step] if i >= step else 0
        if kind == 1:
            line[i] = (line[i] + left) & 255
        elif kind == 2:
            line[i] = (line[i] + up) & 255
        elif kind == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif kind == 4:
            guess = left + up - corner
            near = min((abs(guess - v), n) for n, v in enumerate((left, up, corner)))[1]
            line[i] = (line[i] + (left, up, corner)[near]) & 255
