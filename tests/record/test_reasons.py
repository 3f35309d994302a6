"""Every reason that reaches a round is known, and the documentation's table is theirs."""

from __future__ import annotations

import re
from pathlib import Path

from zk0d.record.reasons import BEGIN, END, Effect, Reason, table

ROOT = Path(__file__).parents[2]
#: Ends of commands and of runs, which no node answers to a round.
ELSEWHERE = {
    "arm_failed",
    "bad_manifest",
    "camera_missing",
    "driver_missing",
    "error",
    "evaluation_failed",
    "no_release",
    "no_updates",
    "not_calibrated",
    "nothing_to_resume",
    "other_lerobot",
    "other_weights",
    "processors",
    "quorum",
    "rate_mismatch",
    "refused",
    "rounds",
    "run_failed",
    "simulator_missing",
    "torn_weights",
    "unknown_policy",
    "wrong_hash",
    "wrong_signature",
}


def test_every_reason_in_the_code_is_known() -> None:
    found = set()
    for path in (ROOT / "zk0d").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'reason(?:=|: str = )"([a-z_]+)"', text))
    assert len(found) > 30
    assert found - {reason.value for reason in Reason} == ELSEWHERE


def test_an_invented_reason_counts_as_other_and_leaves() -> None:
    assert Reason.of("norm_cap") is Reason.NORM_CAP
    assert Reason.of("made-up") is Reason.OTHER
    assert not Reason.OTHER.passes
    assert {r for r in Reason if r.effect is Effect.AWAY} == {
        Reason.GPU_FAILED,
        Reason.LEARNER_BUSY,
        Reason.LEARNER_GONE,
        Reason.LEARNER_SILENT,
        Reason.LINE_RESTS,
        Reason.RESTING,
    }


def test_what_a_run_waits_for_passes_and_a_mistake_does_not() -> None:
    of_a_run = {Reason.TOO_FEW_NODES, Reason.ROUNDS_FAILED, Reason.INTERRUPTED}
    assert {reason for reason in Reason if reason.waits and not reason.passes} == of_a_run
    for reason in ("config_error", "model_mismatch", "bug", "forbidden", "made-up"):
        assert not Reason.of(reason).waits


def test_the_table_in_the_documentation_is_made_from_them() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table(), "make reference writes it"
