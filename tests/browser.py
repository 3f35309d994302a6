"""Pages in headless Chromium: what it complains of, and whether they fit a window."""

from __future__ import annotations

import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from PIL import Image

PHONE = 390
NARROWEST = 500  #: a window of Chromium's is never narrower


def drawn(page: str, folder: Path, width: int, height: int = 1400) -> Image.Image:
    """The page, by its address or its text, ``width`` pixels wide and drawn without a complaint.

    It must fit: nothing may be drawn in its last columns.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not here (Debian's package of that name brings it)")
    address, picture = page, folder / f"page-{width}.png"
    if not page.startswith(("http", "file:")):
        # In a frame, because a window can not be as narrow as a phone.
        frame = folder / "frame.html"
        frame.write_text(
            f'<body style="margin:0"><iframe width="{width}" height="{height}" style="border:0"'
            f' srcdoc="{escape(page)}"></iframe>'
        )
        address = frame.as_uri()
    said = subprocess.run(
        [
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={folder}/profile"),
            f"--window-size={max(width, NARROWEST)},{height}",
            *(f"--screenshot={picture}", address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.exists(), said.stderr[-2000:]
    complaints = [line for line in said.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    image = Image.open(picture).convert("RGB").crop((0, 0, width, height))
    edge = {image.getpixel((width - 3, y)) for y in range(0, height, 7)}
    assert edge == {image.getpixel((2, 2))}, "the page is wider than the window"
    colours = image.getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20, "text and chart are drawn"
    return image
