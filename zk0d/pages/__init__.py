"""HTML pages that load nothing: one style, templates that escape what came from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

STYLE = files(__name__).joinpath("style.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

#: Sent with a page: nothing is loaded, framed or run.
HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]

_templates = Environment(
    loader=PackageLoader("zk0d", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["figure"] = lambda value: "–" if value is None else f"{value:.4g}"


def render(name: str, **facts: Any) -> str:
    """The page of the template ``name``, such as ``"report"``."""
    return _templates.get_template(f"{name}.html").render(style=STYLE, **facts)
