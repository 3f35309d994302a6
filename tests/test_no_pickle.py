"""Nothing that arrives is unpickled, evaluated or trusted to bring code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "zk0d"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "torch.load", "yaml.load", "pickle.loads", "pandas.read_pickle"}
TRUSTING = {"trust_remote_code", "allow_pickle"}


def dangers(source: str) -> list[str]:
    """What in a module could run what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                found.append(ast.unparse(node.func))
            found += [
                str(keyword.arg)
                for keyword in node.keywords
                if keyword.arg in TRUSTING
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_a_module_runs_nothing_that_it_is_given(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import torch; torch.load('x')",
        "eval('1')",
        "exec(code)",
        "np.load('x', allow_pickle=True)",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=asked)",
        "import yaml; yaml.load(text)",
    ],
)
def test_each_danger_is_found(source: str) -> None:
    assert dangers(source)
