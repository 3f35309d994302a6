"""Flower's SuperExec with an executor of ours: it starts the app that is installed, and no other.

Flower's own starts whatever a bundle asks for, an agent's code included, with the task's token on
the command line, and forgets the process. ``python -m zk0d.flower.superexec ROLE`` takes the
arguments of ``flower-superexec`` after the role.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time as real_time
from collections import Counter
from collections.abc import Callable
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

from zk0d.daemon.looks import Looks
from zk0d.errors import UsageError
from zk0d.files import write_file
from zk0d.flower.processes import App, Forks, FreshProcesses, Starter
from zk0d.flower.version import check_version, lacks

PULSE_VARIABLE = "ZK0D_PULSE_FILE"
#: What each role runs: Flower's task type, and the verb of :mod:`zk0d.flower.apps`.
ROLES = {"server": ("flwr-serverapp", "serverapp"), "client": ("flwr-clientapp", "clientapp")}
PULSE_SECONDS = 1.0
#: Between two looks for work where there was none for long. Each costs the other side as well.
LONGEST_WAIT = 1.0


class InstalledApps:
    """Flower's ``Executor``, for one role.

    Parameters
    ----------
    pulse
        A file that is written at each look for work, so that a supervisor sees that there is one;
        it holds what was started, how it ended and what was refused.
    """

    def __init__(self, role: str, pulse: Path | None = None) -> None:
        self._task_type, self._verb = ROLES[role]
        self._pulse = pulse
        self._last_pulse = 0.0
        program = [sys.executable, "-m", "zk0d.flower.apps", self._verb]
        # A run has one ServerApp, and a ClientApp for every message.
        self._starter: Starter = (Forks if role == "client" else FreshProcesses)(program)
        self._running: list[App] = []
        #: When to look for work: often after some came or ended, a run's next is near then.
        self.looks = Looks(0.0, LONGEST_WAIT)
        self.started = 0
        #: Ends of apps: by exit status, negative for a signal.
        self.ends: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()

    def get_eligible_capacity(self, supported: set[Any], **_: Any) -> tuple[set[Any], set[str]]:
        """Every type is taken: what nobody took would keep its run waiting without limit."""
        return supported, set()

    def wait_for_capacity(self, *_: Any, **__: Any) -> None:
        """There is always room."""

    def launch(self, spec: Any) -> Any:
        """Start the installed app, or tell Flower that the task failed."""
        from flwr.supercore import log
        from flwr.supercore.superexec.executor import LaunchResult

        if str(spec.task_type) != self._task_type:
            self.refused[str(spec.task_type)] += 1
            log(ERROR, "zk0d: a task of type %s is refused; it does not run here", spec.task_type)
            self.answer_failed(spec, f"this machine runs no {spec.task_type}")
            return LaunchResult.accepted()
        trust = ["--root-certificates", spec.root_certificates_path] if not spec.insecure else []
        app = self._starter.start(
            ["--runtime-api-address", spec.runtime_api_address, *(trust or ["--insecure"])],
            spec.token,
        )
        self._running.append(app)
        self.looks.news()
        self.started += 1
        log(INFO, "zk0d: %s started for task %d (pid %d)", self._verb, spec.task_id, app.pid)
        return LaunchResult.accepted()

    def answer_failed(self, spec: Any, why: str) -> None:
        """Push a failed outcome for a task that is not run."""
        from flwr.common.constant import SubStatus
        from flwr.supercore.interceptors import (
            RuntimeTokenHttpInterceptor,
            RuntimeVersionHttpInterceptor,
        )
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient
        from flwr.supercore.tls import validate_and_resolve_root_certificates
        from flwr.supernode.runtime.run_clientapp import push_task_output

        retries = make_simple_http_retry_invoker()
        retries.max_tries = 3
        client = RuntimeHttpClient.from_server_address(
            server_address=spec.runtime_api_address,
            insecure=spec.insecure,
            root_certificates=validate_and_resolve_root_certificates(
                spec.root_certificates_path, spec.insecure
            ),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="zk0d"),
                RuntimeTokenHttpInterceptor(spec.token),
            ],
            retry_invoker=retries,
        )
        try:
            push_task_output(client, None, SubStatus.FAILED, why)
        finally:
            client.close()

    def reconcile(self) -> None:
        """Reap what ended, and give a sign of life. Flower calls this before each look for work."""
        from flwr.supercore import log

        self._starter.look()
        for app in list(self._running):
            status = app.poll()
            if status is None:
                continue
            self._running.remove(app)
            self.looks.news()
            self.ends[status] += 1
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
                log(WARNING, "zk0d: %s (pid %d) %s", self._verb, app.pid, how)
        if self._pulse is not None and real_time.monotonic() - self._last_pulse >= PULSE_SECONDS:
            self._last_pulse = real_time.monotonic()
            counts = {"started": self.started, "ends": self.ends, "refused": self.refused}
            try:
                write_file(self._pulse, json.dumps(counts), durable=False)
            except OSError:  # a full disk costs the counts, not the sign of life
                self._pulse.touch()

    def close(self) -> None:
        """End the apps: nothing runs on without its SuperExec."""
        self._starter.close()
        self._running.clear()


class Pacing:
    """Stands for the ``time`` module inside Flower's loop, which sleeps between looks for work."""

    def __init__(self, looks: Looks, sleep: Callable[[float], None] = real_time.sleep) -> None:
        self._looks = looks
        self._sleep = sleep

    def sleep(self, seconds: float) -> None:
        """Wait at least so long (``superexec.poll-interval``)."""
        self._sleep(max(seconds, self._looks.wait))

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


def install(role: str) -> InstalledApps:
    """Put our executor where Flower's SuperExec looks for one, and our waits between its looks.

    Raises
    ------
    UnavailableError
        If this Flower has no such place.
    """
    check_version()
    # The package's attribute of that name is the function in it.
    module = importlib.import_module("flwr.supercore.superexec.run_superexec")
    for name in ("get_executor", "time"):
        if not hasattr(module, name):
            raise lacks(f"{name} in its SuperExec")
    pulse = os.environ.pop(PULSE_VARIABLE, "")
    apps = InstalledApps(role, Path(pulse) if pulse else None)
    module.get_executor = lambda *_, **__: apps  # type: ignore[attr-defined]
    module.time = Pacing(apps.looks)  # type: ignore[attr-defined]
    return apps


def main() -> None:
    """Run ``flower-superexec`` for a role."""
    if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
        raise UsageError(f"superexec: the first argument is one of {', '.join(ROLES)}.")
    install(sys.argv.pop(1))
    from flwr.supercore.cli import flower_superexec

    flower_superexec()


if __name__ == "__main__":
    main()
