"""QR codes in a terminal."""

from __future__ import annotations

import io
import shutil
import sys

#: White on black, whatever colours the terminal has: a camera needs the light margin.
_LIGHT, _USUAL = "\x1b[97;40m", "\x1b[0m"
_MARGIN = 4  #: modules, as the standard asks


def qr_code(text: str) -> str:
    """Lines that show ``text`` as a QR code, half a character a module."""
    import segno

    drawn = io.StringIO()
    code = segno.make(text, error="l", micro=False)
    code.terminal(drawn, border=_MARGIN, compact=True)
    return "\n".join(f"{_LIGHT}{line}{_USUAL}" for line in drawn.getvalue().splitlines())


def fits_here(code: str) -> bool:
    """Whether standard output is a terminal that can show it."""
    width = max(len(line) for line in code.splitlines()) - len(_LIGHT + _USUAL)
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return (
        sys.stdout.isatty() and encoding == "utf8" and shutil.get_terminal_size().columns >= width
    )
