"""Every block of code in the documentation is what the programs take, and every command in a line.

A block says its language; a TOML block its file, as ``title="client.toml"``, which readers see.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import functools
import importlib.util
import json
import re
import shlex
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from tests.setup.releases import REPOSITORY
from zk0d.cli.main import app
from zk0d.config.base import Settings, known_keys
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.config.run import RunSettings, parse_overrides, run_settings
from zk0d.errors import ConfigError
from zk0d.services.main import command_line
from zk0d.simulation.plan import Contributors

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ROLES = sorted(path.name for path in (REPOSITORY / "ansible/roles").iterdir())


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    where: str
    info: str
    code: str

    @property
    def language(self) -> str:
        return self.info.split(" ")[0]


def pages() -> list[Path]:
    said = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [REPOSITORY / name for name in said.stdout.split()]


def blocks_of(text: str, name: str) -> Iterator[Block]:
    for found in _FENCE.finditer(text):
        line = text[: found.start()].count("\n") + 1
        yield Block(f"{name}:{line}", found[2].strip(), textwrap.dedent(found[3]))


BLOCKS = [
    block
    for path in pages()
    for block in blocks_of(path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY)))
]


# --- what a block of each language must be --------------------------------------------------------


def toml(block: Block) -> None:
    title = re.fullmatch(r'toml title="(.+)"', block.info)
    assert title, 'it says whose settings these are: toml title="client.toml"'
    model, needed = FILES[title[1]]
    model.parse({**needed, **tomllib.loads(block.code)}, where=title[1])


#: A settings file's model, and what a part of such a file may leave out.
FILES: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "client.toml": (ClientSettings, {"name": "left"}),
    "server.toml": (ServerSettings, {}),
    "contributors.toml": (Contributors, {}),
}


def nginx(block: Block) -> None:
    """It is started in tests/services/test_mirrors.py."""
    assert block.where.startswith("docs/coordinator.md")
    lines = [line.strip() for line in block.code.splitlines()]
    assert [line for line in lines if line and line[-1] not in ";{}"] == []
    assert block.code.count("{") == block.code.count("}")


def sh(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in commands(block.code):
        check_command(words)


def yaml_(block: Block) -> None:
    parsed = yaml.safe_load(block.code)
    assert isinstance(parsed, (dict, list))
    known = role_variables()
    for name in re.findall(rf"\b(?:{'|'.join(ROLES)})_\w+", block.code):
        assert name in known, f"{name} is no variable of a role"


def role_variables() -> set[str]:
    found = set()
    for path in (REPOSITORY / "ansible/roles").glob("*/meta/argument_specs.yml"):
        found |= yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"].keys()
    return found


def ini(block: Block) -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(block.code)
    assert parser.sections()


def python(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom):
            assert importlib.util.find_spec(node.module or ""), node.module


LANGUAGES: dict[str, Callable[[Block], None]] = {
    "toml": toml,
    "nginx": nginx,
    "sh": sh,
    "yaml": yaml_,
    "json": lambda block: json.loads(block.code),
    "ini": ini,
    "python": python,
    "bibtex": lambda block: None,
    "text": lambda block: None,
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_is_valid_in_its_language(block: Block) -> None:
    assert block.language in LANGUAGES, "a block names its language; text, if it has none"
    LANGUAGES[block.language](block)


def test_there_are_blocks_of_each_kind() -> None:
    kinds = {block.language for block in BLOCKS}
    assert kinds >= {"toml", "sh", "yaml", "ini", "python", "text"}
    assert len(BLOCKS) > 40


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs/examples").iterdir()), ids=str)
def test_an_example_is_read(path: Path) -> None:
    Contributors.load(path)


# --- commands -------------------------------------------------------------------------------------


def commands(code: str) -> Iterator[list[str]]:
    """The simple commands of a shell script: what pipes, lists and subshells are made of."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        tokens = iter([*lexer, ";"])
        for word in tokens:
            if word in (">", ">>", "<", "<<<"):
                next(tokens)  # where to, or from
            elif set(word) <= set("();|&"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check_command(words: list[str]) -> None:
    """Whether a program of ours takes this; others' are known by name alone."""
    while words and (words[0] == "sudo" or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    if program == "bash" and arguments[0] in ("-s", "get-zk0bot.sh"):
        program = "get-zk0bot.sh"
    if program in PROGRAMS:
        PROGRAMS[program](arguments)
    else:
        assert program in OTHERS, f"{program}: which program is that?"


OTHERS = {
    *("apt", "cd", "cp", "curl", "pip", "printf", "rm", "setfacl", "tar", "umask"),
    *(".venv/bin/python", "lerobot-rollout", "systemctl"),
}


@functools.cache
def program() -> tuple[click.Command, dict[str, Any]]:
    """The real program, whose verbs do nothing but write down here what they were given."""
    command, taken = typer.main.get_command(app), dict[str, Any]()
    _harmless(command, taken)
    return command, taken


def zk0bot(arguments: list[str]) -> None:
    """Parse it as the real program does, without doing anything; RUN stands for a number."""
    arguments = ["1" if re.fullmatch("[A-Z]+", word) else word for word in arguments]
    command, taken = program()
    taken.clear()
    command.main(arguments, prog_name="zk0bot", standalone_mode=False)
    if config := taken.get("config"):
        run_settings(parse_overrides(config))


def _harmless(command: click.Command, taken: dict[str, Any]) -> None:
    for child in getattr(command, "commands", {}).values():
        _harmless(child, taken)
    if not getattr(command, "commands", None):
        command.callback = lambda **given: taken.update(given)


def zk0d(arguments: list[str]) -> None:
    parser = command_line()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)


def _refuse(message: str) -> Any:
    raise argparse.ArgumentError(None, message)


def make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        name, equals, value = word.partition("=")
        assert equals or name in targets, f"make has no target {name}"
        if name == "ARGS" and arguments[0] == "demo":
            zk0bot(["demo", *shlex.split(value)])


def installer(arguments: list[str]) -> None:
    known = set(re.findall(r"(--[\w-]+)", (REPOSITORY / "get-zk0bot.sh").read_text()))
    for word in arguments:
        assert not word.startswith("--") or word == "--" or word in known, word


def playbook(arguments: list[str]) -> None:
    for word in arguments:
        if word.endswith(".yml") or word.startswith("inventory/"):
            assert (REPOSITORY / "ansible" / word).exists(), word


def python_program(arguments: list[str]) -> None:
    assert arguments[0] == "-m"
    assert importlib.util.find_spec(arguments[1]), arguments[1]


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "zk0bot": zk0bot,
    "zk0d": zk0d,
    "make": make,
    "get-zk0bot.sh": installer,
    "ansible-playbook": playbook,
    "python": python_program,
}


def inline() -> Iterator[tuple[str, str]]:
    """Commands and settings within a line, by their page; the changelog tells of old ones, too."""
    for path in pages():
        if path.name == "CHANGELOG.md":
            continue
        text = _FENCE.sub("", path.read_text(encoding="utf-8"))
        for found in _INLINE.finditer(text):
            yield str(path.relative_to(REPOSITORY)), " ".join(found[1].split())


def named(program: str) -> list[tuple[str, str]]:
    return sorted({each for each in inline() if each[1].startswith(f"{program} ")})


@pytest.mark.parametrize(("page", "text"), named("zk0bot"))
def test_a_command_in_a_line_has_a_verb_and_its_options(page: str, text: str) -> None:
    """It may leave out what is needed, show a choice as ``a|b`` and what may be left out in [ ]."""
    plain = re.sub(r"[\[\]]|\.\.\.", " ", text.replace("\\|", "|"))
    for words in _choices(shlex.split(plain)):
        command, _ = program()
        for word in words:
            verbs = getattr(command, "commands", {})
            if not verbs or word.startswith("-"):
                break
            assert word in verbs, f"{page}: {text}: there is no verb {word}"
            command = verbs[word]
        options = {"--help", "--install-completion"}
        options |= {
            option for each in command.params for option in (*each.opts, *each.secondary_opts)
        }
        unknown = {word for word in words if word.startswith("-")} - options
        assert not unknown, f"{page}: {text}"


def _choices(words: list[str]) -> Iterator[list[str]]:
    """Each of what ``start|stop`` and the like mean, without the program."""
    found: list[list[str]] = [[]]
    for word in words[1:]:
        parts = word.split("|") if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else [word]
        found = [[*chosen, part] for chosen in found for part in parts]
    yield from found


@pytest.mark.parametrize("program", ["zk0d", "make"])
def test_a_service_or_target_in_a_line_is_there(program: str) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    verbs = next(a for a in command_line()._actions if a.choices).choices
    assert verbs is not None
    for page, text in named(program):
        if program == "make" and "=" in text:
            make(shlex.split(text)[1:])
            continue
        for word in re.split(r"[ ,]+", text)[1:]:
            if word in ("server", "client") or word.startswith("-") or "." in word:
                continue
            assert word in (targets if program == "make" else verbs), f"{page}: {text}"


_ASSIGNED = re.compile(r"([a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*) ?= ?[^= ].*")


def test_a_setting_in_a_line_is_one() -> None:
    """``superlink.open-control = true``, ``hf-repo-id=user/model``: of a run or of a machine."""
    known = {*known_keys(RunSettings), *_dotted(ClientSettings), *_dotted(ServerSettings)}
    wrong = []
    count = 0
    for page, text in inline():
        if page == "docs/results.md" or not _ASSIGNED.fullmatch(text):
            continue
        key = text.partition("=")[0].strip()
        count += 1
        if key in known_keys(RunSettings) and not text.endswith(("N", "…")):
            run_settings(parse_overrides([text.replace(" = ", "=")]))
        if key not in known and key.rpartition(".")[2] not in LAST and key not in NOT_OURS:
            wrong.append(f"{page}: {text}")
    assert not wrong
    assert count > 10


def _dotted(model: type[Settings], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = before + (field.alias or name)
        yield key
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, Settings):
                yield from _dotted(part, f"{key}.")


#: Keys without their tables, where a sentence names the table.
LAST = {key.rpartition(".")[2] for key in (*_dotted(ClientSettings), *_dotted(ServerSettings))}
NOT_OURS = {"imp", "title"}  #: an equation's; a block's


def test_a_cameras_name_may_be_lerobots() -> None:
    """As it stands in a dataset's info.json, or plain; not both of one camera."""
    plain = ClientSettings.parse({"name": "a", "cameras": {"wrist": "camera1"}}, where="t")
    full = {"observation.images.wrist": "observation.images.camera1"}
    assert ClientSettings.parse({"name": "a", "cameras": full}, where="t") == plain
    with pytest.raises(ConfigError, match="'cameras' is wrong: a camera is named twice"):
        ClientSettings.parse({"name": "a", "cameras": {**full, "wrist": "x"}}, where="t")


# --- the tests' own: what is wrong is found -------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "code"),
    [
        ("", "text"),
        ("toml", "[cameras]"),
        ('toml title="client.toml"', "[cameras]\nfront = 3"),
        ('toml title="client.toml"', "[learner]\nsokcet = '/x'"),
        ('toml title="server.toml"', "[autorun.run]\nlokal-steps = 3"),
        ("sh", "zk0bot ("),
        ("sh", "zk0bot clint start"),
        ("sh", "curl x | sudo bash -s -- --rolle client"),
        ("sh", "zk0bot server start; zk0bot run --roundz 3"),
        ("sh", "zk0bot run -c 'lokal-steps=3'"),
        ("sh", "zk0bot run --rounds many"),
        ("sh", "zk0bot push CHECKPOINT"),
        ("sh", "zk0d learner --konfig x"),
        ("sh", "make nothing"),
        ("sh", "make demo ARGS='--sed 1'"),
        ("sh", "frobnicate"),
        ("yaml", "a: [b"),
        ("yaml", "all: {zk0d_client_datset: x}"),
        ("json", "{"),
        ("ini", "no section"),
        ("python", "import ("),
        ("python", "from lerobot.nothing import x"),
    ],
)
def test_a_wrong_block_is_found(info: str, code: str) -> None:
    with pytest.raises(
        (AssertionError, KeyError, ConfigError, click.ClickException, argparse.ArgumentError)
        + (ValueError, yaml.YAMLError, SyntaxError, configparser.Error, ModuleNotFoundError)
    ):
        test_a_block_is_valid_in_its_language(Block("here", info, code))
