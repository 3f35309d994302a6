"""What all tests share: an offline environment and one small set of recordings."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
# LeRobot imports every plugin that it finds, MuJoCo's too, which then looks for a window system.
os.environ.setdefault("MUJOCO_GL", "egl")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Decoded frames are kept in the user's caches. A fresh folder: no session uses another's.
    _CACHES = tempfile.TemporaryDirectory(prefix="zk0d-caches-")
    os.environ["XDG_CACHE_HOME"] = _CACHES.name

import hypothesis
import pytest
from filelock import FileLock

from tests.made import record

atexit.register(gc.freeze)  # as zk0d.daemon.program does

# No test asserts a time: machines differ.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

EPISODES = 6


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end: looking for garbage among them is a fifth of the work."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first; the other tests of a file stay together, for its fixtures."""
    items.sort(key=_turn)
    for item in items:
        if _turn(item) == 2:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}/{item.path.stem}"))


def _turn(item: pytest.Item) -> int:
    """0 for tests that share one federation, 1 for others that take long, 2 for the rest."""
    marks = {mark.name for mark in item.iter_markers()}
    if "xdist_group" in marks:
        return 0
    return 1 if marks & {"slow", "guest"} else 2


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all test processes of this session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def recordings_folder(shared_folder: Path) -> Path:
    """A SoReach dataset of a few episodes in the left half; do not change it."""
    folder = shared_folder / "recordings"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            record(folder, EPISODES)
    return folder


@pytest.fixture
def copied_recordings(recordings_folder: Path, tmp_path: Path) -> Path:
    """A copy of the recordings that a test may damage."""
    return Path(shutil.copytree(recordings_folder, tmp_path / "dataset"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file in the test's folder; its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What systemd was asked to do, as if it ran these services."""
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr("zk0d.machine.units.by_systemd", lambda folder: True)
    monkeypatch.setattr("zk0d.machine.units.systemctl", lambda *words, **_: said.append(words))
    return said


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Test processes share the cores, so one thread each, unless more are asked for."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def no_real_time_priority() -> Iterator[None]:
    """What a test starts inherits its priority: one busy process in real time starves a core."""
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail("this test gave its process real-time priority (SVT-AV1 does that as root)")
