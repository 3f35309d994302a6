"""A learner loads its policy family, and not what LeRobot's other families need."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from zk0d import imports
from zk0d.imports import LATE, Distributions

HEAVY = ("datasets", "pandas", "matplotlib", "diffusers.models", "lerobot.datasets")
OTHERS = ("groot", "evo1", "fastwam", "pi0", "pi05", "xvla", "wall_x", "molmoact2")

CODE = """\
import json, sys
import zk0d.learner.tasks
from zk0d.learning.policies import family
from lerobot.policies.factory import get_policy_class
family(sys.argv[1])
get_policy_class(sys.argv[1])
loaded = sorted(sys.modules)
from lerobot.policies import GrootConfig, make_policy
import lerobot.policies as policies
later = [GrootConfig.__module__, make_policy.__module__, policies.ACTConfig.__module__]
try:
    policies.not_there
except AttributeError as error:
    later.append(str(error))
print(json.dumps([loaded, later]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["smolvla", pytest.param("act", marks=pytest.mark.long)])
def test_a_policy_is_loaded_without_other_families(policy: str) -> None:
    command = [sys.executable, "-c", CODE, policy]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    loaded, later = json.loads(said.stdout)
    assert f"lerobot.policies.{policy}.modeling_{policy}" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    heavy = tuple(f"lerobot.policies.{name}.modeling_" for name in OTHERS)
    assert [name for name in loaded if name.startswith(heavy)] == []
    # And whoever asks LeRobot for one of its names gets it.
    assert later == [
        "lerobot.policies.groot.configuration_groot",
        "lerobot.policies.factory",
        "lerobot.policies.act.configuration_act",
        "module 'lerobot.policies' has no attribute 'not_there'",
    ]


@pytest.mark.slow
def test_what_is_waited_for_is_there() -> None:
    """Otherwise LeRobot has changed, and the list does nothing."""
    for name in LATE:
        package: ModuleType = __import__(name, fromlist=["_"])
        assert package.__spec__ is not None
        assert isinstance(package.__spec__.loader, imports._Late), name


@pytest.mark.slow
def test_distributions_are_those_that_python_finds() -> None:
    asked, usual = Distributions(), metadata.packages_distributions()
    for package in ("torch", "numpy", "huggingface_hub", "yaml", "PIL", "_pytest"):
        names = {name.lower().replace("_", "-") for name in usual[package]}
        assert asked[package][0].lower() in names
    assert "nothing_of_this_name" not in asked
    assert set(asked) == set(usual)
