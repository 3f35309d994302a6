"""The site that ``make docs`` builds: its links, what it asks others for, what lies at its root."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown.extensions.toc import slugify

from tests import processes
from tests.setup.releases import REPOSITORY, make_release
from zk0d.cli.reference import cli_page

DOCS = REPOSITORY / "docs"


def build(folder: Path, *, checkout: Path = REPOSITORY, **env: str) -> tuple[int, str]:
    venv = {"ZK0D_VENV": str(Path(sys.executable).parents[1])}
    done = processes.run(
        [checkout / ".ci/make-docs", folder],
        env={**os.environ, **venv, **env},
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a release in it."""
    root = tmp_path_factory.mktemp("docs")
    release = make_release(root / "release", "0.9.0", url="https://example.org/{version}")
    code, said = build(root / "site", RELEASE=str(release))
    assert code == 0, said
    return root / "site"


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in {"canonical", "next", "prev"}:
            pass
        elif tag in {"link", "script", "img", "iframe", "source"}:
            self.loads += [found[name] for name in ("href", "src") if name in found]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    # The page for addresses that are not there is served from anywhere, so its links are absolute.
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].ids
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_a_link_outside_the_site_leads_somewhere() -> None:
    """Of README.md and every other page that the site does not have."""
    said = subprocess.run(
        ["git", "ls-files", "*.md", ":!docs"], cwd=REPOSITORY, capture_output=True, check=True
    )
    links = [
        (path, link)
        for path in map(REPOSITORY.joinpath, said.stdout.decode().split())
        for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", path.read_text(encoding="utf-8"))
    ]
    assert len(links) > 20
    assert [f"{path.name}: {link}" for path, link in links if not _leads(path, link)] == []


def _leads(path: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    if not anchor or not target.is_file():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in {slugify(heading, "-") for heading in headings}


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert [link for page in pages.values() for link in page.loads if urlsplit(link).netloc] == []


def test_every_page_is_built(site: Path) -> None:
    expected = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    expected = {
        path.with_name("index.html") if path.stem == "README" else path for path in expected
    }
    assert expected <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_the_installer_lies_at_the_root(site: Path) -> None:
    script = (site / "get-zk0bot.sh").read_bytes()
    assert b'readonly STAMPED_VERSION="0.9.0"' in script, "it is the release's own"
    sums = (site / "get-zk0bot.sh.sha256").read_text()
    assert sums == f"{hashlib.sha256(script).hexdigest()}  get-zk0bot.sh\n"
    assert (site / "releases/0.9.0/SHA256SUMS").is_file()


def test_a_folder_without_a_release_is_refused(tmp_path: Path) -> None:
    code, said = build(tmp_path / "site", RELEASE=str(tmp_path))
    assert code == 69
    assert "holds no version" in said


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(checkout)]
    subprocess.run(clone, check=True, capture_output=True)
    subprocess.run(
        ["cp", "-r", *(REPOSITORY / name for name in ("docs", "mkdocs.yml", ".ci")), checkout],
        check=True,
    )
    page = checkout / "docs/contributor.md"
    page.write_text(f"{page.read_text()}\n[there](nowhere.md)\n")
    code, said = build(tmp_path / "site", checkout=checkout)
    assert code == 75
    assert "nowhere.md" in said


def test_the_page_of_commands_is_fresh() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert page == cli_page(page), "make reference"


def messages() -> list[str]:
    """What the page of troubleshooting quotes."""
    rows = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [match[1] for row in rows if (match := re.match(r"\| `([^`]+)` \|", row))]


@pytest.fixture(scope="module")
def said() -> str:
    """Every text that the programs can say, what is filled in as …."""
    files = ("get-zk0bot.sh", "systemd/zk0d-release", ".ci/setup-venv")
    shell = [re.sub(r"\$\w+|\$\{[^}]*\}", "…", (REPOSITORY / name).read_text()) for name in files]
    python = (text for path in (REPOSITORY / "zk0d").rglob("*.py") for text in _texts(path))
    return "\n".join([*shell, *python])


def _texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_one_of_the_programs(message: str, said: str) -> None:
    assert re.search(".*".join(map(re.escape, message.split("…"))), said)
