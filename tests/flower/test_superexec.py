"""Our executor starts one program for one task type, and answers the others."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from tests.processes import wait_until
from zk0d.daemon.looks import Looks
from zk0d.errors import UnavailableError, UsageError
from zk0d.flower import apps, superexec
from zk0d.flower.processes import Fork
from zk0d.flower.superexec import InstalledApps

TOKEN = "token-that-nobody-may-see"


def spec(task_type: TaskType, address: str = "127.0.0.1:9") -> ExecutionSpec:
    return ExecutionSpec(
        task_type=task_type,
        runtime_api_address=address,
        token=TOKEN,
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=False,
        task_id=1,
    )


@pytest.fixture
def silent_runtime() -> Iterator[str]:
    """A Runtime API that accepts connections and never answers (a fake), so apps stay alive."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def client() -> Iterator[InstalledApps]:
    made = InstalledApps("client")
    yield made
    made.close()


@pytest.fixture(params=["server", "client"])
def either(request: pytest.FixtureRequest) -> Iterator[InstalledApps]:
    made = InstalledApps(request.param)
    yield made
    made.close()


OWN = {"serverapp": TaskType.SERVER_APP, "clientapp": TaskType.CLIENT_APP}


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("task_type", list(TaskType))
def test_one_task_type_is_ours_and_the_others_are_answered(
    role: str, task_type: TaskType, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    answered: list[str] = []
    made = InstalledApps(role)
    monkeypatch.setattr(made, "answer_failed", lambda spec, why: answered.append(why))

    def start(arguments: list[str], token: str) -> Fork:
        assert token == TOKEN
        started.append(arguments)
        return Fork(1)

    monkeypatch.setattr(made._starter, "start", start)
    result = made.launch(spec(task_type))
    assert result.status == LaunchResultStatus.ACCEPTED
    own = {"server": TaskType.SERVER_APP, "client": TaskType.CLIENT_APP}[role]
    if task_type is own:
        assert started == [["--runtime-api-address", "127.0.0.1:9", "--insecure"]]
        assert answered == []
    else:
        assert started == []
        assert answered == [f"this machine runs no {task_type}"]
        assert made.refused == {str(task_type): 1}


def test_every_task_type_is_taken(client: InstalledApps) -> None:
    assert client.get_eligible_capacity(set(TaskType), insecure=True) == (set(TaskType), set())


@pytest.mark.slow
def test_a_killed_app_is_reaped_and_counted(either: InstalledApps, silent_runtime: str) -> None:
    either.launch(spec(OWN[either._verb], silent_runtime))
    app = psutil.Process(either._running[0].pid)
    wait_until(lambda: "zk0d.flower.apps" in " ".join(app.cmdline()), "the app's start", 20)
    assert TOKEN not in " ".join(app.cmdline())
    app.send_signal(signal.SIGKILL)

    def counted() -> bool:
        either.reconcile()
        return bool(either.ends)

    wait_until(counted, "its end", 20)
    assert either.ends == {-signal.SIGKILL: 1}
    assert not app.is_running(), "it was reaped"


@pytest.mark.slow
def test_closing_ends_the_apps(either: InstalledApps, silent_runtime: str) -> None:
    either.launch(spec(OWN[either._verb], silent_runtime))
    app = psutil.Process(either._running[0].pid)
    either.close()
    assert not app.is_running()


def test_the_pulse_is_given_at_a_look(tmp_path: Path) -> None:
    made = InstalledApps("server", tmp_path / "pulse")
    made.reconcile()
    assert (tmp_path / "pulse").exists()


def test_work_is_looked_for_often_after_some_came_and_less_often_then() -> None:
    now, waited = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    looks = Looks(0.0, superexec.LONGEST_WAIT, lambda: now[0])
    pacing = superexec.Pacing(looks, sleep)
    while now[0] < 60.0:
        pacing.sleep(0.2)
    assert waited[0] == 0.2
    assert waited == sorted(waited)
    assert waited[-1] == superexec.LONGEST_WAIT
    looks.news()
    pacing.sleep(0.2)
    pacing.sleep(3.0)
    assert waited[-2:] == [0.2, 3.0], "never more often than the settings say"


@pytest.mark.slow
def test_an_app_that_begins_or_ends_is_news(either: InstalledApps, silent_runtime: str) -> None:
    news: list[str] = []
    either.looks.news = lambda: news.append("news")  # type: ignore[method-assign]
    either.launch(spec(OWN[either._verb], silent_runtime))
    assert news == ["news"]
    psutil.Process(either._running[0].pid).send_signal(signal.SIGKILL)

    def ended() -> bool:
        either.reconcile()
        return not either._running

    wait_until(ended, "its end", 20)
    assert news == ["news", "news"]


def test_flowers_loop_sleeps_by_our_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("flwr.supercore.superexec.run_superexec")
    for name in ("get_executor", "time"):
        monkeypatch.setattr(module, name, getattr(module, name))
    made = superexec.install("client")
    assert module.time._looks is made.looks
    assert inspect.getsource(module).count("time.sleep(task_poll_interval)") == 1


def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("flwr.supercore.superexec.run_superexec")
    monkeypatch.delattr(module, "get_executor")
    with pytest.raises(UnavailableError, match="no get_executor"):
        superexec.install("client")
    with pytest.raises(UnavailableError, match="has no install_from_fabs"):
        apps._replace(module, install_from_fabs=None)


@pytest.mark.parametrize("module", [superexec, apps])
def test_an_unknown_role_is_a_usage_error(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "manager"])
    with pytest.raises(UsageError, match="the first argument is one of"):
        module.main()


@pytest.mark.slow
def test_a_clientapp_imports_no_torch() -> None:
    code = (
        "import sys; from zk0d.flower import apps; apps._installed_clientapp();"
        " import flwr.supernode.cli; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
