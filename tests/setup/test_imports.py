"""What tests and benches import from this project is there, also where only a GPU runs them."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _files() -> list[str]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split() if (ROOT / name).exists()]


@functools.cache
def _names(module: str) -> frozenset[str]:
    """Everything a module or package could be asked for; of one that is not there, nothing."""
    place = ROOT / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.exists():
        return frozenset()
    names = {"*", *(child.stem for child in place.glob("*") if place.is_dir())}
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name):
                names.add(name)
            case ast.ImportFrom() | ast.Import():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.TypeAlias(name=ast.Name(id=name)):
                names.add(name)
    return frozenset(names)


@pytest.mark.slow
def test_every_import_of_this_project_is_there() -> None:
    missing = [
        f"{file}:{node.lineno}: {node.module}.{alias.name}"
        for file in _files()
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        if node.module.split(".")[0] in ("zk0d", "tests")
        for alias in node.names
        if alias.name not in _names(node.module)
    ]
    assert not missing


@pytest.mark.slow
def test_outside_its_own_package_only_flowers_app_interface_is_imported() -> None:
    """The import contract knows whole distributions; this holds which modules of flwr."""
    interface = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
    found = {
        (str(file.relative_to(ROOT)), node.module)
        for file in (ROOT / "zk0d").rglob("*.py")
        if "flower" not in file.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr"
    }
    assert found, "the apps import it"
    assert {each for each in found if each[1] not in interface} == set()
