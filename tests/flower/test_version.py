"""Which Flower is accepted, and that the range and the pin say the same."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.setup.releases import REPOSITORY
from zk0d.errors import UnavailableError
from zk0d.flower import version


def minors(requirement: Requirement) -> list[str]:
    return [f"1.{minor}" for minor in range(100) if requirement.specifier.contains(f"1.{minor}.0")]


def test_the_installed_one_is_tested() -> None:
    assert version.check_version().startswith(version.TESTED)


@pytest.mark.parametrize("found", ["1.40.0", "1.43.0", "1.4.2", "1.420.0", "2.41.0"])
def test_another_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "version", lambda _: found)
    with pytest.raises(UnavailableError, match=f"flwr {found} is installed.*1.42.x;"):
        version.check_version()


def test_the_range_is_what_was_tested_and_the_newest_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["simulation"]]
    ranges = [each for each in map(Requirement, wanted) if each.name == "flwr"]
    assert len(ranges) == 2
    assert [minors(each) for each in ranges] == [list(version.TESTED)] * 2
    (pin,) = re.findall(r"(?m)^flwr==(\S+)", (REPOSITORY / "constraints.txt").read_text())
    assert pin.startswith(f"{version.TESTED[-1]}.")
