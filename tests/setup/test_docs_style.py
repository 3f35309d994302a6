"""Texts for readers: their lines, their words, and every page in the site's navigation.

docs/contributing.md has the rules; this holds what a program can. The site's tests follow links.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from tests.setup.releases import REPOSITORY
from zk0d.cli.main import app
from zk0d.config.base import Settings
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.config.run import RunSettings

WIDTH = 100

#: Each with the words to write in its place.
BANNED = {
    r"\bgo(es|ne|ing)? on (by|with|after|until|without|where|while)\b|\bgo(es|ne|ing)? on[.,;]?$": (
        "continue, resume"
    ),
    r"\b(run|round|federation|service|it)s? go(es)? on\b": "continue, resume",
    r"\banew\b": "again; restart, rebuild",
    r"\bnobody\b": "name the condition, or 'no node'",
    r"(^|[.:;] )(Who|Whose|Whoever|Nobody)\b[^?\n]*$": "name the person or the thing",
    r"\b(by|for|to|of) (who|whoever|whom)\b": "name the person",
    r"(^|[.:;] )What (is|was|it|they|a|the|one|can|has)\b[^?\n]*$": "name the thing",
    r"\b(is|are|was) said\b": "the program prints, names",
    r"\bat hand\b": "here",
    r"\b(gave|given?|gives) (it |them )?back\b": "free, return",
    r"(?<![Tt]here )\b(is|are) no (?!longer\b|better\b)": "is not a",
    r"\bwhere there (is|are)\b": "if there is",
    r"\bbeyond belief\b": "impossible",
    r"\ball the same\b": "in spite of it",
}


def tracked(*patterns: str) -> list[Path]:
    said = subprocess.run(
        ["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [REPOSITORY / name for name in said.stdout.split()]


PAGES = tracked("README.md", "CHANGELOG.md", "docs/*.md")


def banned(text: str) -> list[str]:
    """Each banned phrase in ``text``, with the words to write in its place."""
    return [
        f"{found[0]!r}: {better}"
        for phrase, better in BANNED.items()
        if (found := re.search(phrase, text, re.MULTILINE))
    ]


def prose(page: str) -> str:
    """The page without code, quoted messages and addresses of links."""
    page = re.sub(r"^( *)```.*?^\1```$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"`[^`\n]*`", "`…`", page)
    return re.sub(r"\]\([^)]*\)", "]", page)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_pages_lines_fit(path: Path) -> None:
    """A row of a table may be longer: a cell cannot be broken."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert [number for number, line in lines if len(line) > WIDTH and line[:1] != "|"] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_page_has_no_banned_phrase(path: Path) -> None:
    assert banned(prose(path.read_text(encoding="utf-8"))) == []


def helps() -> Iterator[tuple[str, str]]:
    """Every help text of the program: of a verb, of an option, of an argument."""

    def walk(command: object, name: str) -> Iterator[tuple[str, str]]:
        yield name, getattr(command, "help", None) or ""
        for parameter in getattr(command, "params", []):
            yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
        for word, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{name} {word}")

    yield from walk(typer.main.get_command(app), "zk0bot")


def descriptions() -> Iterator[tuple[str, str]]:
    """Every description of a setting."""

    def walk(model: type[Settings], name: str) -> Iterator[tuple[str, str]]:
        for field_name, field in model.model_fields.items():
            yield f"{name}.{field_name}", field.description or ""
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, Settings):
                    yield from walk(part, f"{name}.{field_name}")

    for model in (RunSettings, ClientSettings, ServerSettings):
        yield from walk(model, model.__name__)


def said() -> Iterator[tuple[str, str]]:
    """Every text of three words in the code: errors, findings, status and log lines, metrics."""
    for path in tracked("zk0d/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.JoinedStr, ast.Constant)) and node not in docstrings:
                text = _text(node)
                if len(text.split()) > 2:
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}: {text}", text


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    """Its text; a value that is filled in becomes "…"."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)


def printed() -> Iterator[tuple[str, str]]:
    """Every message of the shell programs."""
    for path in tracked("get-zk0bot.sh", "systemd/zk0d-release", ".ci/setup-venv"):
        for text in re.findall(r'\b(?:die \d+|say|step|warn) "([^"]+)"', path.read_text()):
            yield f"{path.name}: {text}", text


def alerts() -> Iterator[tuple[str, str]]:
    for path in tracked("zk0d/monitoring/rules/*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                notes = rule.get("annotations", {})
                yield rule.get("alert", ""), f"{notes.get('summary')}\n{notes.get('description')}"


def tasks() -> Iterator[tuple[str, str]]:
    for path in tracked("ansible/*.yml"):
        for name in re.findall(r"^ *- name: ([^#\n]+)", path.read_text(), re.MULTILINE):
            yield f"{path.relative_to(REPOSITORY)}: {name}", name


def unit_descriptions() -> Iterator[tuple[str, str]]:
    for path in tracked("systemd/*"):
        for text in re.findall(r"^Description=(.+)", path.read_text(), re.MULTILINE):
            yield f"{path.name}: {text}", text


def names_of_tests() -> Iterator[tuple[str, str]]:
    for path in tracked("tests/*.py"):
        for name in re.findall(r"^(?:async )?def test_(\w+)", path.read_text(), re.MULTILINE):
            yield f"{path.relative_to(REPOSITORY)}::test_{name}", name.replace("_", " ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts", [helps, descriptions, said, printed, alerts, tasks, unit_descriptions, names_of_tests]
)
def test_a_programs_texts_have_no_banned_phrase(
    texts: Callable[[], Iterator[tuple[str, str]]],
) -> None:
    found = dict(texts())
    assert len(found) > 5
    assert {where: banned(text) for where, text in found.items() if banned(text)} == {}


def test_the_navigation_names_every_page() -> None:
    """Runbooks are reached from their index."""
    text = (REPOSITORY / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2]))
    pages = {str(path.relative_to(REPOSITORY / "docs")) for path in tracked("docs/*.md")}
    assert named == {page for page in pages if not page.startswith("runbooks/Zk0d")}


@pytest.mark.parametrize(
    "text",
    [
        "the run goes on",
        "it goes on by itself",
        "for who is not root",
        "it is no folder",
        "What it says.",
    ],
)
def test_a_banned_phrase_is_found(text: str) -> None:
    assert banned(text)


@pytest.mark.parametrize(
    "text", ["it is no longer there", "there is no folder", "What is wrong here?", "`it goes on`"]
)
def test_a_plain_text_passes(text: str) -> None:
    assert banned(prose(text)) == []
