"""HTML pages that load nothing: one style, templates that escape what came from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

#: Of lines in pictures: Okabe and Ito's, which people who confuse red and green tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
STYLE = files(__name__).joinpath("style.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def _headers(*, forms: bool) -> list[tuple[str, str]]:
    target, referrer = ("'self'", "same-origin") if forms else ("'none'", "no-referrer")
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        (
            "Content-Security-Policy",
            f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
            f" form-action {target}; frame-ancestors 'none'",
        ),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", referrer),
    ]


#: Sent with a page: nothing is loaded, framed or run.
HEADERS = _headers(forms=False)
#: The same for one with forms. Without a referrer a browser hides a form's origin, too.
FORM_HEADERS = _headers(forms=True)

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
