"""Each alert fires when it should and is silent when it should be, by promtool's own engine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.test_dashboards import ALERTS
from tests.monitoring.tools import program
from zk0d.monitoring.export import RULES

DAY = 24 * 60
LINK = '{instance="link", job="zk0d-server"}'
RUNNING = {'zk0d_run_state{instance="link", state="running"}': "1x3000"}
ENDED = {'zk0d_run_state{instance="link", state="running"}': "0x3000"}


@dataclass(frozen=True)
class Case:
    """What Prometheus sees, minute by minute, and who then speaks."""

    name: str
    series: dict[str, str]
    at: int  #: minutes
    fires: str = ""  #: an alert that does
    labels: dict[str, str] = field(default_factory=dict)  #: by which it is known
    silent: str = ""  #: an alert that does not


def fires(alert: str, series: dict[str, str], at: int, **labels: str) -> Case:
    return Case(f"{alert} fires", series, at, fires=alert, labels=labels)


def silent(alert: str, why: str, series: dict[str, str], at: int) -> Case:
    return Case(f"{alert} is silent: {why}", series, at, silent=alert)


def clock(seconds: int, minutes: int = 200) -> str:
    """A timestamp that stays."""
    return f"{seconds}x{minutes}"


LOSSES = {f"zk0d_policy_loss_best{LINK}": "0.2x60"}
STATES = {**RUNNING, f"zk0d_last_round_committed_timestamp_seconds{LINK}": "60x300"}
NODE = 'node="left"'
CLIENT = 'instance="node", job="zk0d-client", node="left"'
GPU = f'{CLIENT}, gpu="0"'
OF_GPU = {"instance": "node", "job": "zk0d-client", "node": "left", "gpu": "0"}
WAITS = {f'zk0d_run_waiting_since_timestamp_seconds{LINK[:-1]}, reason="too_few_nodes"}}': "60x200"}
DISK = '{instance="link", holds="runs"}'

CASES = [
    # --- learning
    fires(
        "Zk0dLossDiverging",
        {**RUNNING, **LOSSES, f"zk0d_policy_loss_mean{LINK}": "0.2x10 0.3x50"},
        20,
        severity="critical",
        instance="link",
        job="zk0d-server",
    ),
    silent(
        "Zk0dLossDiverging",
        "a little worse than the best",
        {**RUNNING, **LOSSES, f"zk0d_policy_loss_mean{LINK}": "0.24x60"},
        30,
    ),
    silent(
        "Zk0dLossDiverging",
        "the run is over",
        {**ENDED, **LOSSES, f"zk0d_policy_loss_mean{LINK}": "0.3x60"},
        30,
    ),
    silent("Zk0dLossDiverging", "it was never evaluated", {**RUNNING}, 30),
    fires(
        "Zk0dLossStalled",
        {**RUNNING, "zk0d_evaluations_since_best": "5x60"},
        10,
        severity="warning",
    ),
    silent(
        "Zk0dLossStalled", "a new best", {**RUNNING, "zk0d_evaluations_since_best": "5x10 0x9"}, 15
    ),
    silent(
        "Zk0dLossStalled", "the run is over", {**ENDED, "zk0d_evaluations_since_best": "9x60"}, 30
    ),
    fires(
        "Zk0dUpdateNotFinite",
        {f'zk0d_updates_rejected_total{{{NODE}, reason="not_finite"}}': "0x5 1x60"},
        10,
        severity="critical",
        node="left",
        reason="not_finite",
    ),
    silent(
        "Zk0dUpdateNotFinite",
        "another reason",
        {f'zk0d_updates_rejected_total{{{NODE}, reason="learner_busy"}}': "0x5 1x60"},
        10,
    ),
    silent(
        "Zk0dUpdateNotFinite",
        "half an hour has passed",
        {f'zk0d_updates_rejected_total{{{NODE}, reason="not_finite"}}': "0x5 1x60"},
        40,
    ),
    fires(
        "Zk0dUpdatesRefused",
        {f'zk0d_node_updates_total{{{NODE}, result="refused"}}': "0x5 1x5 2x5 3x60"},
        30,
        severity="warning",
        node="left",
        result="refused",
    ),
    silent(
        "Zk0dUpdatesRefused",
        "one alone passes by itself",
        {f'zk0d_node_updates_total{{{NODE}, result="refused"}}': "0x5 1x90"},
        30,
    ),
    fires(
        "Zk0dEvaluationFailing",
        {'zk0d_evaluations_total{result="failed"}': "0x5 1x60"},
        10,
        severity="warning",
        result="failed",
    ),
    silent(
        "Zk0dEvaluationFailing", "it works", {'zk0d_evaluations_total{result="failed"}': "0x60"}, 30
    ),
    # --- rounds
    fires(
        "Zk0dRoundOverdue",
        {"zk0d_round_deadline_timestamp_seconds": clock(600)},
        20,
        severity="critical",
    ),
    silent(
        "Zk0dRoundOverdue",
        "a little late: it is being evaluated",
        {"zk0d_round_deadline_timestamp_seconds": clock(600)},
        12,
    ),
    silent(
        "Zk0dRoundOverdue",
        "no round is under way",
        {"zk0d_round_deadline_timestamp_seconds": clock(0)},
        100,
    ),
    fires(
        "Zk0dNoRoundCommitted",
        STATES,
        130,
        severity="critical",
        instance="link",
        job="zk0d-server",
    ),
    fires(
        "Zk0dNoRoundCommitted",
        {
            **RUNNING,
            f"zk0d_last_round_committed_timestamp_seconds{LINK}": "0x300",
            f"zk0d_run_start_timestamp_seconds{LINK}": "60x300",
        },
        130,
        severity="critical",
        instance="link",
        job="zk0d-server",
    ),
    silent("Zk0dNoRoundCommitted", "an hour is nothing", STATES, 60),
    silent(
        "Zk0dNoRoundCommitted",
        "the run is over",
        {**ENDED, f"zk0d_last_round_committed_timestamp_seconds{LINK}": "60x300"},
        200,
    ),
    silent(
        "Zk0dNoRoundCommitted",
        "an old run that commits",
        {
            **RUNNING,
            f"zk0d_last_round_committed_timestamp_seconds{LINK}": "60+60x300",
            f"zk0d_run_start_timestamp_seconds{LINK}": "60x300",
        },
        250,
    ),
    fires(
        "Zk0dRunWaiting",
        {**WAITS, f"zk0d_run_wait_alert_seconds{LINK}": "3600x200"},
        70,
        severity="warning",
        reason="too_few_nodes",
        instance="link",
        job="zk0d-server",
    ),
    silent(
        "Zk0dRunWaiting",
        "it has not waited for so long",
        {**WAITS, f"zk0d_run_wait_alert_seconds{LINK}": "7200x200"},
        70,
    ),
    silent(
        "Zk0dRunWaiting",
        "the operator wants none",
        {**WAITS, f"zk0d_run_wait_alert_seconds{LINK}": "0x200"},
        190,
    ),
    silent(
        "Zk0dRunWaiting",
        "it does not wait",
        {
            f'zk0d_run_waiting_since_timestamp_seconds{LINK[:-1]}, reason=""}}': "0x200",
            f"zk0d_run_wait_alert_seconds{LINK}": "60x200",
        },
        190,
    ),
    fires(
        "Zk0dRoundFailed",
        {'zk0d_rounds_total{result="failed"}': "0x5 1x60"},
        10,
        severity="warning",
        result="failed",
    ),
    silent(
        "Zk0dRoundFailed",
        "a new run begins at 0",
        {'zk0d_rounds_total{result="failed"}': "2x40 0x60"},
        60,
    ),
    fires(
        "Zk0dRunFailed",
        {'zk0d_run_state{state="failed"}': "1x60"},
        10,
        severity="critical",
        state="failed",
    ),
    silent(
        "Zk0dRunFailed",
        "it went on by itself",
        {'zk0d_run_state{state="failed"}': "1x3 0x60"},
        10,
    ),
    # --- nodes
    fires(
        "Zk0dNodeLost",
        {f"zk0d_node_last_online_timestamp_seconds{{{NODE}}}": "0+60x10 600x200"},
        25,
        severity="warning",
        node="left",
    ),
    silent(
        "Zk0dNodeLost",
        "a reboot",
        {f"zk0d_node_last_online_timestamp_seconds{{{NODE}}}": "0+60x10 600x6 1000+60x90"},
        30,
    ),
    silent(
        "Zk0dNodeLost",
        "it was never here",
        {f"zk0d_node_last_online_timestamp_seconds{{{NODE}}}": "0x200"},
        100,
    ),
    silent(
        "Zk0dNodeLost",
        "it left two days ago",
        {f"zk0d_node_last_online_timestamp_seconds{{{NODE}}}": f"600x{3 * DAY}"},
        2 * DAY,
    ),
    silent("Zk0dNodeLost", "no nodes exist", {"zk0d_round": "1x60"}, 30),
    fires(
        "Zk0dNodeZombie",
        {
            f'zk0d_node_updates_total{{{NODE}, result="lost"}}': "0x5 1x5 2x5 3x60",
            f"zk0d_node_online{{{NODE}}}": "1x90",
        },
        30,
        severity="warning",
        node="left",
        result="lost",
    ),
    fires(
        "Zk0dNodeZombie",
        {f'zk0d_child_restarts_total{{{CLIENT}, reason="zombie"}}': "0x5 1x5 3x60"},
        30,
        severity="warning",
        instance="node",
        job="zk0d-client",
        node="left",
        reason="zombie",
    ),
    silent(
        "Zk0dNodeZombie",
        "it is offline: that is Zk0dNodeLost's",
        {
            f'zk0d_node_updates_total{{{NODE}, result="lost"}}': "0x5 1x5 2x5 3x60",
            f"zk0d_node_online{{{NODE}}}": "0x90",
        },
        30,
    ),
    silent(
        "Zk0dNodeZombie",
        "started again for another reason",
        {f'zk0d_child_restarts_total{{{CLIENT}, reason="refused"}}': "0x5 1x5 3x60"},
        30,
    ),
    fires(
        "Zk0dKeyShared",
        {f"zk0d_node_key_shared{{{NODE}}}": "0x5 1x60"},
        10,
        severity="warning",
        node="left",
    ),
    silent("Zk0dKeyShared", "it was settled", {f"zk0d_node_key_shared{{{NODE}}}": "1x5 0x60"}, 10),
    fires(
        "Zk0dLearnerStalled",
        {
            f"zk0d_learner_busy{{{CLIENT}}}": "1x90",
            f"zk0d_learner_last_progress_timestamp_seconds{{{CLIENT}}}": clock(60),
        },
        35,
        severity="critical",
        instance="node",
        job="zk0d-client",
        node="left",
    ),
    silent(
        "Zk0dLearnerStalled",
        "it has nothing to do",
        {
            f"zk0d_learner_busy{{{CLIENT}}}": "0x90",
            f"zk0d_learner_last_progress_timestamp_seconds{{{CLIENT}}}": clock(60),
        },
        60,
    ),
    silent(
        "Zk0dLearnerStalled",
        "it moves",
        {
            f"zk0d_learner_busy{{{CLIENT}}}": "1x90",
            f"zk0d_learner_last_progress_timestamp_seconds{{{CLIENT}}}": "60+60x90",
        },
        60,
    ),
    fires(
        "Zk0dLearnerDown",
        {f"zk0d_learner_up{{{CLIENT}}}": "1x5 0x60"},
        15,
        severity="critical",
        instance="node",
        job="zk0d-client",
        node="left",
    ),
    silent("Zk0dLearnerDown", "it restarts", {f"zk0d_learner_up{{{CLIENT}}}": "0x3 1x60"}, 10),
    fires(
        "Zk0dVersionSkew",
        {
            'zk0d_build_info{version="1", instance="a"}': f"1x{3 * DAY}",
            'zk0d_build_info{version="2", instance="b"}': f"1x{3 * DAY}",
        },
        2 * DAY,
        severity="warning",
    ),
    fires(
        "Zk0dVersionSkew",
        {
            'zk0d_run_state{instance="link", state="running"}': f"1x{3 * DAY}",
            'zk0d_build_info{version="1", instance="a"}': f"1x{3 * DAY}",
            f'zk0d_node_info{{version="2", {NODE}}}': f"1x{3 * DAY}",
        },
        2 * DAY,
        severity="warning",
    ),
    silent(
        "Zk0dVersionSkew",
        "an upgrade under way",
        {
            'zk0d_build_info{version="1", instance="a"}': f"1x{3 * DAY}",
            'zk0d_build_info{version="2", instance="b"}': f"1x{3 * DAY}",
        },
        60,
    ),
    silent(
        "Zk0dVersionSkew",
        "all the same",
        {
            'zk0d_build_info{version="1", instance="a"}': f"1x{3 * DAY}",
            'zk0d_learner_build_info{version="1", instance="b"}': f"1x{3 * DAY}",
        },
        2 * DAY,
    ),
    # --- machines
    fires(
        "Zk0dGpuTooHot",
        {f'zk0d_gpu_temperature_celsius{{{CLIENT}, gpu="0"}}': "90x60"},
        10,
        severity="warning",
        instance="node",
        job="zk0d-client",
        node="left",
        gpu="0",
    ),
    silent(
        "Zk0dGpuTooHot",
        "a moment",
        {f'zk0d_gpu_temperature_celsius{{{CLIENT}, gpu="0"}}': "80x5 90x2 80x60"},
        10,
    ),
    silent("Zk0dGpuTooHot", "no GPU", {"zk0d_learner_up": "1x60"}, 30),
    fires(
        "Zk0dGpuSlowed",
        {f'zk0d_gpu_slowed{{{GPU}, reason="hardware"}}': "1x60"},
        12,
        severity="warning",
        reason="hardware",
        **OF_GPU,
    ),
    silent(
        "Zk0dGpuSlowed",
        "its power limit, which its owner set",
        {f'zk0d_gpu_slowed{{{GPU}, reason="power"}}': "1x60"},
        30,
    ),
    silent(
        "Zk0dGpuSlowed",
        "a moment",
        {f'zk0d_gpu_slowed{{{GPU}, reason="thermal"}}': "0x5 1x5 0x60"},
        12,
    ),
    fires(
        "Zk0dGpuError",
        {f'zk0d_gpu_xid_errors_total{{{GPU}, xid="79"}}': "0x5 1x60"},
        10,
        severity="warning",
        xid="79",
        **OF_GPU,
    ),
    silent(
        "Zk0dGpuError",
        "an hour has passed",
        {f'zk0d_gpu_xid_errors_total{{{GPU}, xid="79"}}': "0x5 1x90"},
        70,
    ),
    silent(
        "Zk0dGpuError",
        "it is from before, and only the learner restarted",
        {f'zk0d_gpu_xid_errors_total{{{GPU}, xid="79"}}': "1x5 _x3 1x60"},
        15,
    ),
    fires(
        "Zk0dGpuMemoryBroken",
        {f'zk0d_gpu_ecc_uncorrected_errors{{{GPU}, kind="life"}}': "3x5 4x60"},
        10,
        severity="warning",
        kind="life",
        **OF_GPU,
    ),
    fires(
        "Zk0dGpuMemoryBroken",
        {f'zk0d_gpu_remapped_rows{{{GPU}, kind="pending"}}': "1x60"},
        10,
        severity="warning",
        kind="pending",
        **OF_GPU,
    ),
    silent(
        "Zk0dGpuMemoryBroken",
        "errors of long ago, and rows that were replaced",
        {
            f'zk0d_gpu_ecc_uncorrected_errors{{{GPU}, kind="life"}}': "3x60",
            f'zk0d_gpu_remapped_rows{{{GPU}, kind="uncorrected"}}': "2x60",
            f'zk0d_gpu_remapped_rows{{{GPU}, kind="failed"}}': "0x60",
        },
        30,
    ),
    fires(
        "Zk0dDiskFilling",
        {
            f"zk0d_filesystem_free_bytes{DISK}": "8x60",
            f"zk0d_filesystem_size_bytes{DISK}": "100x60",
        },
        10,
        severity="warning",
        instance="link",
        holds="runs",
    ),
    silent(
        "Zk0dDiskFilling",
        "there is room",
        {
            f"zk0d_filesystem_free_bytes{DISK}": "20x60",
            f"zk0d_filesystem_size_bytes{DISK}": "100x60",
        },
        30,
    ),
    silent(
        "Zk0dDiskFilling",
        "worse: that is Zk0dDiskFull's",
        {
            f"zk0d_filesystem_free_bytes{DISK}": "1x60",
            f"zk0d_filesystem_size_bytes{DISK}": "100x60",
        },
        30,
    ),
    fires(
        "Zk0dDiskFull",
        {
            f"zk0d_filesystem_free_bytes{DISK}": "1x60",
            f"zk0d_filesystem_size_bytes{DISK}": "100x60",
        },
        10,
        severity="critical",
        instance="link",
        holds="runs",
    ),
    silent(
        "Zk0dDiskFull",
        "a disk without a size",
        {f"zk0d_filesystem_free_bytes{DISK}": "0x60", f"zk0d_filesystem_size_bytes{DISK}": "0x60"},
        30,
    ),
    fires(
        "Zk0dCertificateExpiring",
        {'zk0d_certificate_expiry_timestamp_seconds{certificate="gateway"}': "1209600x60"},
        20,
        severity="warning",
        certificate="gateway",
    ),
    silent(
        "Zk0dCertificateExpiring",
        "it was renewed",
        {'zk0d_certificate_expiry_timestamp_seconds{certificate="gateway"}': "1209600x5 9e9x60"},
        20,
    ),
    fires(
        "Zk0dChildRestarting",
        {f'zk0d_child_starts_total{{{CLIENT}, child="flower-supernode"}}': "1 2 3 4 5 6x60"},
        6,
        severity="warning",
        instance="node",
        job="zk0d-client",
        node="left",
        child="flower-supernode",
    ),
    silent(
        "Zk0dChildRestarting",
        "one start",
        {f'zk0d_child_starts_total{{{CLIENT}, child="flower-supernode"}}': "0 1x60"},
        6,
    ),
    fires(
        "Zk0dWatchdogWithheld",
        {f'zk0d_watchdog_pings_withheld_total{{{CLIENT}, reason="no_poll"}}': "0x5 1+30x60"},
        10,
        severity="warning",
        instance="node",
        job="zk0d-client",
        node="left",
        reason="no_poll",
    ),
    fires(
        "Zk0dWatchdogWithheld",
        {f'zk0d_learner_watchdog_pings_withheld_total{{{CLIENT}, reason="x"}}': "0x5 1+30x60"},
        10,
        severity="warning",
        instance="node",
        job="zk0d-client",
        node="left",
        reason="x",
    ),
    silent(
        "Zk0dWatchdogWithheld",
        "it was fed",
        {f'zk0d_watchdog_pings_withheld_total{{{CLIENT}, reason="no_poll"}}': "7x60"},
        30,
    ),
    # --- silence
    fires(
        "Zk0dTargetDown",
        {f"up{LINK}": "1x5 0x60"},
        15,
        severity="critical",
        instance="link",
        job="zk0d-server",
    ),
    silent("Zk0dTargetDown", "it restarts", {f"up{LINK}": "1x5 0x3 1x60"}, 15),
    silent("Zk0dTargetDown", "not ours", {'up{job="node"}': "0x60"}, 30),
    fires("Zk0dCoordinatorAbsent", {'up{job="zk0d-client"}': "1x60"}, 20, severity="critical"),
    silent("Zk0dCoordinatorAbsent", "it is a target, up or not", {f"up{LINK}": "0x60"}, 30),
]


def as_promtool(case: Case) -> dict[str, Any]:
    expected = [{"exp_labels": case.labels}] if case.fires else []
    return {
        "name": case.name,
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{case.at}m",
                "alertname": case.fires or case.silent,
                "exp_alerts": expected,
            }
        ],
    }


@pytest.fixture(scope="module")
def bare_rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules without their texts, which cases would have to repeat."""
    folder = tmp_path_factory.mktemp("rules")
    for path in RULES.glob("*.yml"):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            for rule in group["rules"]:
                rule.pop("annotations", None)
        (folder / path.name).write_text(yaml.safe_dump(content))
    return folder


def run(folder: Path, cases: list[dict[str, Any]], rules: Path) -> subprocess.CompletedProcess[str]:
    return promtool(cases_file(folder / "test.yml", cases, rules))


def cases_file(path: Path, cases: list[dict[str, Any]], rules: Path) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(path) for path in sorted(rules.glob("*.yml"))],
                "evaluation_interval": "1m",
                "tests": cases,
            },
            sort_keys=False,
        )
    )
    return path


def promtool(*tests: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), "test", "rules", *map(str, tests)], capture_output=True, text=True
    )


@pytest.mark.slow
def test_every_alert_fires_and_is_silent_when_it_should(tmp_path: Path, bare_rules: Path) -> None:
    """Each alert's cases with that alert alone: they last for days, minute by minute."""
    files = []
    for name in ALERTS:
        rules = tmp_path / name
        rules.mkdir()
        for path in bare_rules.glob("*.yml"):
            content = yaml.safe_load(path.read_text())
            for group in content["groups"]:
                group["rules"] = [r for r in group["rules"] if r.get("alert", name) == name]
            (rules / path.name).write_text(yaml.safe_dump(content))
        cases = [as_promtool(case) for case in CASES if name in (case.fires, case.silent)]
        files.append(cases_file(tmp_path / f"{name}.yml", cases, rules))
    said = promtool(*files)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_case_of_either_kind(name: str) -> None:
    assert any(case.fires == name for case in CASES)
    assert any(case.silent == name for case in CASES)


def test_a_wrong_case_is_found(tmp_path: Path, bare_rules: Path) -> None:
    wrong = as_promtool(silent("Zk0dTargetDown", "wrongly", {f"up{LINK}": "0x60"}, 30))
    assert run(tmp_path, [wrong], bare_rules).returncode


def test_an_alerts_texts_are_filled_in(tmp_path: Path) -> None:
    """The templates, with numbers and names put in."""
    folder = tmp_path / "rules"
    folder.mkdir()
    for path in RULES.glob("*.yml"):
        (folder / path.name).write_text(path.read_text())
    case = as_promtool(
        fires(
            "Zk0dDiskFilling",
            {
                f"zk0d_filesystem_free_bytes{DISK}": "8x60",
                f"zk0d_filesystem_size_bytes{DISK}": "100x60",
            },
            10,
            severity="warning",
            instance="link",
            holds="runs",
        )
    )
    case["alert_rule_test"][0]["exp_alerts"][0]["exp_annotations"] = {
        "summary": "A disk is filling up.",
        "description": "The disk where link keeps its runs has 8% free.",
        "panel": "fleet/Free disk",
    }
    said = run(tmp_path, [case], folder)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.slow
def test_without_targets_only_the_absence_alert_fires(tmp_path: Path, bare_rules: Path) -> None:
    """A Prometheus that scrapes no zk0d, and one whose targets are all gone."""
    cases = []
    for name in ALERTS:
        if name != "Zk0dCoordinatorAbsent":
            cases.append(as_promtool(silent(name, "empty", {"other": "1x90"}, 60)))
        if name != "Zk0dTargetDown":
            gone = {f"up{LINK}": "0x90", f"zk0d_round{LINK}": "3x5 stale"}
            cases.append(as_promtool(silent(name, "gone", gone, 60)))
    said = run(tmp_path, cases, bare_rules)
    assert said.returncode == 0, said.stdout + said.stderr
