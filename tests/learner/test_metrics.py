"""What a learner and the SuperExec beside it show to Prometheus."""

# ruff: noqa: N802, N815 - the fake has NVIDIA's names

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.learner.test_app import TASK, Scripted
from tests.serving import served
from zk0d.daemon.gpu import AGAIN_SECONDS, GpuCollector
from zk0d.daemon.metrics import Metrics
from zk0d.errors import DataError, UnavailableError
from zk0d.federation.learner_client import LearnerClient, LearnerError
from zk0d.learner.metrics import LearnerMetrics
from zk0d.learning.progress import CacheUse, Decoding, Progress, Training, event_of
from zk0d.services.learner import LearnerService
from zk0d.services.superexec import AppCollector, LearnerCollector


def page(collector: object) -> str:
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def value(text: str, series: str) -> float:
    (found,) = re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found)


def test_tasks_are_counted_by_how_they_ended_and_read_through_the_superexec(tmp_path: Path) -> None:
    scripted = Scripted()
    path = tmp_path / "l.sock"
    with served(scripted, path), LearnerClient(path) as client:
        shown = LearnerCollector(path)
        before = page(shown)
        assert value(before, "zk0d_learner_up") == 1
        assert value(before, 'zk0d_tasks_total{kind="start",result="done"}') == 0
        client.start(TASK)

        def fail(*_: object) -> None:
            raise DataError("no.")

        scripted.work = fail  # type: ignore[assignment]
        with pytest.raises(LearnerError):
            client.start(TASK)
        after = page(shown)
        assert value(after, 'zk0d_tasks_total{kind="start",result="done"}') == 1
        assert value(after, 'zk0d_tasks_total{kind="start",result="data_error"}') == 1
        assert value(after, "zk0d_learner_busy") == 0
        assert "zk0d_build_info" not in after, "the SuperExec has its own"
        assert 'zk0d_learner_build_info{service="learner"' in after
        assert value(after, 'zk0d_task_bytes_total{direction="received"}') > 0
        assert value(after, 'zk0d_task_bytes_total{direction="sent"}') > 0
        assert value(after, 'zk0d_task_seconds_total{kind="start"}') > 0


def test_a_learner_that_is_away_is_one_series(tmp_path: Path) -> None:
    assert page(LearnerCollector(tmp_path / "nothing.sock")).splitlines()[-1] == (
        "zk0d_learner_up 0.0"
    )


def test_a_scrape_does_not_wait_for_a_task(tmp_path: Path) -> None:
    """While a task is under way, its progress is already there."""
    scripted, seen = Scripted(), []
    path = tmp_path / "l.sock"

    def work(task, payload, control):  # type: ignore[no-untyped-def]
        for step in (4, 10):
            control.report({"event": "progress", "step": step, "steps": 20, "seconds": 0.5 * step})
        page_now = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=5)
        seen.append(page_now.get("http://learner/metrics").text)
        raise DataError("enough.")

    scripted.work = work
    with served(scripted, path), LearnerClient(path) as client, pytest.raises(LearnerError):
        client.start(TASK)
    assert value(seen[0], "zk0d_train_steps_total") == 10
    assert value(seen[0], "zk0d_learner_busy") == 1
    assert value(seen[0], "zk0d_train_seconds_total") == 5
    assert value(seen[0], "zk0d_learner_last_progress_timestamp_seconds") > 1e9


@pytest.mark.parametrize(
    "progress", [CacheUse(9, 9, 0, 0, "/cache"), Decoding(3, 9, 1.0, 0), Training(1, 9, 1.0)]
)
def test_every_kind_of_progress_counts_as_progress(progress: Progress) -> None:
    figures = LearnerMetrics(Metrics("learner"), ["train"])
    series = "zk0d_learner_last_progress_timestamp_seconds"
    assert value(figures.page().decode(), series) == 0
    figures.progress(event_of(progress))
    assert value(figures.page().decode(), series) > 1e9


def test_the_learner_tells_its_recordings() -> None:
    metrics = Metrics("learner")
    figures = LearnerMetrics(metrics, ["train"])
    assert value(figures.page().decode(), "zk0d_policy_loaded") == 0
    summary = {"frames": 90, "episodes": 3}
    figures.facts({"policy": "tiny", "datasets": {"local:/a": summary}})
    text = figures.page().decode()
    assert value(text, "zk0d_policy_loaded") == 1
    assert value(text, 'zk0d_frames{dataset="local:/a"}') == 90
    assert value(text, 'zk0d_episodes{dataset="local:/a"}') == 3
    assert value(text, "zk0d_train_steps_total") == 0


def test_apps_of_the_superexec_are_counted(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    assert value(page(AppCollector(pulse)), "zk0d_apps_started_total") == 0
    counts = {"started": 5, "ends": {"0": 3, "-9": 1}, "refused": {"flwr-agentapp": 1}}
    pulse.write_text(json.dumps(counts))
    text = page(AppCollector(pulse))
    assert value(text, "zk0d_apps_started_total") == 5
    assert value(text, 'zk0d_app_ends_total{status="-9"}') == 1
    assert value(text, 'zk0d_tasks_refused_total{type="flwr-agentapp"}') == 1


class FakeNvml:
    """Stands for NVIDIA's library: one GPU that tells all, one that tells its memory only."""

    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_AGGREGATE_ECC = 1, 0, 1
    nvmlEventTypeXidCriticalError = 8
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80
    unloaded = False
    old = False  #: a driver that knows only the old name of a function
    reasons = 0x4 | 0x80
    remapped_rows = (5, 2, 1, 0)  #: correctable, uncorrectable, pending, failed

    def __init__(self) -> None:
        self.watched: list[int] = []
        self.xids: list[tuple[int, int]] = []  #: that the driver has to tell: GPU and number

    class NVMLError(Exception):
        """What the library raises."""

    def nvmlDeviceGetCount(self) -> int:
        if self.unloaded:
            raise self.NVMLError("driver not loaded")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def _only_first(self, handle: int, answer: object) -> object:
        if handle:
            raise self.NVMLError("not supported")
        return answer

    def nvmlDeviceGetTemperature(self, handle: int, _: int) -> object:
        return self._only_first(handle, 61)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> object:
        return self._only_first(handle, 250_500)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> object:
        return self._only_first(handle, 300_000)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> object:
        if self.old:
            raise self.NVMLError("function not found")
        return self._only_first(handle, self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> object:
        return self._only_first(handle, self.reasons)

    def nvmlDeviceGetRemappedRows(self, handle: int) -> object:
        return self._only_first(handle, self.remapped_rows)

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> object:
        assert kind == self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return self._only_first(handle, 3 if counter == self.NVML_AGGREGATE_ECC else 1)

    def nvmlEventSetCreate(self) -> list[int]:
        return self.watched

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: list[int]) -> None:
        assert kinds == self.nvmlEventTypeXidCriticalError
        events.append(handle)

    def nvmlEventSetWait_v2(self, events: list[int], milliseconds: int) -> object:
        assert events is self.watched
        assert milliseconds == 0, "a scrape waits for nothing"
        if not self.xids:
            raise self.NVMLError("timeout")
        device, number = self.xids.pop(0)
        return SimpleNamespace(device=device, eventData=number)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        return SimpleNamespace(used=2**30, total=2**33)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:
        return self._only_first(handle, SimpleNamespace(gpu=87))


def test_gpu_figures_are_in_base_units() -> None:
    text = page(GpuCollector(FakeNvml))
    assert value(text, 'zk0d_gpu_temperature_celsius{gpu="0"}') == 61
    assert value(text, 'zk0d_gpu_power_watts{gpu="0"}') == 250.5
    assert value(text, 'zk0d_gpu_utilization_ratio{gpu="0"}') == 0.87
    assert value(text, 'zk0d_gpu_memory_bytes{gpu="1",kind="used"}') == 2**30
    assert 'zk0d_gpu_power_watts{gpu="1"}' not in text


def test_the_health_of_a_gpu() -> None:
    nvml = FakeNvml()
    text = page(GpuCollector(lambda: nvml))
    assert value(text, 'zk0d_gpu_power_limit_watts{gpu="0"}') == 300
    slowed = {
        reason: value(text, f'zk0d_gpu_slowed{{gpu="0",reason="{reason}"}}')
        for reason in ("power", "thermal", "hardware")
    }
    assert slowed == {"power": 1, "thermal": 0, "hardware": 1}
    assert value(text, 'zk0d_gpu_ecc_uncorrected_errors{gpu="0",kind="boot"}') == 1
    assert value(text, 'zk0d_gpu_ecc_uncorrected_errors{gpu="0",kind="life"}') == 3
    for kind, rows in (("corrected", 5), ("uncorrected", 2), ("pending", 1), ("failed", 0)):
        assert value(text, f'zk0d_gpu_remapped_rows{{gpu="0",kind="{kind}"}}') == rows
    for name in ("slowed", "ecc_uncorrected_errors", "remapped_rows", "power_limit_watts"):
        assert f'zk0d_gpu_{name}{{gpu="1"' not in text, "a GPU that tells nothing of it"
    nvml.old, nvml.reasons = True, 0x20
    text = page(GpuCollector(lambda: nvml))
    assert value(text, 'zk0d_gpu_slowed{gpu="0",reason="thermal"}') == 1


def xids(text: str, gpu: int, number: int) -> float:
    return value(text, f'zk0d_gpu_xid_errors_total{{gpu="{gpu}",xid="{number}"}}')


def test_a_drivers_errors_are_counted_over_restarts(tmp_path: Path) -> None:
    """Many of them end the learner that would show them."""
    nvml = FakeNvml()
    figures = GpuCollector(lambda: nvml, folder=tmp_path)
    assert xids(page(figures), 0, 79) == 0, "shown before it happens, so that it is an increase"
    assert nvml.watched == [0, 1]
    nvml.xids += [(1, 31), (1, 31), (0, 79)]
    text = page(figures)
    assert (xids(text, 1, 31), xids(text, 0, 79), xids(text, 1, 79)) == (2, 1, 0)
    assert 'gpu="0",xid="31"' not in text
    assert nvml.watched == [0, 1], "it is told once"
    nvml.xids.append((0, 79))
    figures.take_xids()  # as when the process ends
    again = page(GpuCollector(lambda: nvml, folder=tmp_path))
    assert (xids(again, 1, 31), xids(again, 0, 79)) == (2, 2)
    assert xids(page(GpuCollector(lambda: nvml)), 0, 79) == 0, "without a folder"


def test_an_error_that_ends_the_learner_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml, scripted, path = FakeNvml(), Scripted(), tmp_path / "l.sock"
    monkeypatch.setattr(
        "zk0d.learner.metrics.GpuCollector",
        lambda folder: GpuCollector(lambda: nvml, folder=folder),
    )
    service = LearnerService("learner", lambda: (scripted, path), state=tmp_path)
    service.start()

    def fail(*_: object) -> None:
        nvml.xids.append((0, 79))
        raise RuntimeError("CUDA error: unspecified launch failure")

    try:
        with LearnerClient(path) as client:
            assert xids(page(LearnerCollector(path)), 0, 79) == 0
            scripted.work = fail  # type: ignore[assignment]
            with pytest.raises(LearnerError):
                client.start(TASK)
        with pytest.raises(UnavailableError):
            service.look()
    finally:
        service.stop()
    assert xids(page(GpuCollector(lambda: nvml, folder=tmp_path)), 0, 79) == 1


@pytest.mark.parametrize("content", ["", "{", "[[1]]", '{"a": 1}', '[["0", "x", 1]]'])
def test_a_count_that_cannot_be_read_begins_at_0(tmp_path: Path, content: str) -> None:
    (tmp_path / "xids.json").write_text(content)
    assert xids(page(GpuCollector(FakeNvml, folder=tmp_path)), 0, 79) == 0


def test_a_driver_that_tells_no_errors_hides_no_figure() -> None:
    class Silent(FakeNvml):
        def nvmlEventSetCreate(self) -> list[int]:
            raise self.NVMLError("not supported")

    text = page(GpuCollector(Silent))
    assert value(text, 'zk0d_gpu_temperature_celsius{gpu="0"}') == 61


def test_without_a_gpu_there_are_no_series() -> None:
    """NVIDIA's library is not asked at each scrape whether there is one by now."""
    asked = []
    collector = GpuCollector(lambda: asked.append(1), lambda: 100.0)
    assert page(collector) == ""
    assert page(collector) == ""
    assert len(asked) == 1
    import torch

    if not torch.cuda.is_available():
        assert page(GpuCollector()) == "", "nor with NVIDIA's own library"


def test_figures_come_back_when_the_driver_does() -> None:
    """By a fake of NVIDIA's library: not loaded at first, then unloaded for a while."""
    now, driver = 0.0, FakeNvml()
    found: list[FakeNvml | None] = [None, driver, None, driver]
    collector = GpuCollector(lambda: found.pop(0), lambda: now)

    def shown() -> bool:
        return "zk0d_gpu_temperature_celsius" in page(collector)

    assert not shown()
    now += AGAIN_SECONDS
    assert shown()
    now += 5 * AGAIN_SECONDS
    assert shown(), "a driver that answers is not loaded again"
    driver.unloaded = True
    assert not shown()
    assert not shown()
    assert found == [driver], "its library was looked for again"
    driver.unloaded = False
    now += AGAIN_SECONDS
    assert shown()
