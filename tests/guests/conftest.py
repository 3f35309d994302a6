"""Guests for tests: an image once, a network for the session, guests for each test."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import pytest

from tests.guests.lab import Guest, Lab, Unavailable, ensure_image

LAB = pytest.StashKey[Lab]()
#: Rows of the table of faults: what happened, seconds to recover, rounds lost.
FAULTS = pytest.StashKey[list[tuple[str, float, str]]]()
#: Rows of the table of attacks: what was tried, and what was said to it.
ATTACKS = pytest.StashKey[list[tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []
    config.stash[ATTACKS] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables of faults and attacks, if there were any."""
    if rows := config.stash[FAULTS]:
        terminalreporter.section("faults")
        for fault, seconds, lost in rows:
            terminalreporter.write_line(f"{fault:45} {seconds:6.0f} s   rounds lost: {lost}")
    if attacks := config.stash[ATTACKS]:
        terminalreporter.section("attacks")
        for attack, said in attacks:
            terminalreporter.write_line(f"{attack.replace('_', ' '):50} {said}")


@pytest.fixture(scope="session")
def image() -> str:
    """The guests' image; skips where guests cannot be."""
    try:
        return ensure_image()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(image: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The session's network."""
    with Lab(image) as opened:
        pytestconfig.stash[LAB] = opened
        yield opened


@pytest.fixture
def guests(lab: Lab) -> Iterator[Callable[..., Guest]]:
    """``guests("name")`` boots a guest that ends with the test; arguments as ``Lab.guest``."""
    before = list(lab.guests)
    yield lab.guest
    for guest in [guest for guest in lab.guests if guest not in before]:
        lab.remove(guest)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the guests' journals to what a failed test prints."""
    report = yield
    if report.failed and report.when != "teardown" and LAB in item.config.stash:
        report.sections.extend(item.config.stash[LAB].report())
    return report
