"""Each rule against a sequence worked out by hand; the two of PyTorch against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zk0d.config.run import RunSettings, run_settings
from zk0d.federation.schedule import RunSchedule
from zk0d.learning.schedule import ConstantSchedule, CosineSchedule
from zk0d.record.events import Evaluation, RoundCommitted

BASE: dict[str, Any] = {
    "initial-lr": 1e-3,
    "num-server-rounds": 10,
    "local-steps": 4,
    "warmup-steps": 0,
    "final-lr-fraction": 0.1,
}


class Told:
    """A schedule after the rounds that it is told; otherwise it is one."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._events: dict[int, RoundCommitted] = {}
        self._losses: dict[int, dict[str, float]] = {}

    def trained(self, number: int, losses: dict[str, float]) -> None:
        self._events[number] = RoundCommitted(round=number)
        self._losses[number] = losses

    def evaluated(self, number: int, loss: float | None) -> None:
        before = self._events.get(number, RoundCommitted(round=number))
        measured = None if loss is None else Evaluation(loss=loss)
        self._events[number] = before.model_copy(update={"evaluation": measured})

    def rolled_back(self, to_round: int) -> None:
        last = max(self._events)
        if self._events[last].rolled_back_to is not None:
            last += 1
            self._events[last] = RoundCommitted(round=last)
        self._events[last] = self._events[last].model_copy(update={"rolled_back_to": to_round})

    def __getattr__(self, name: str) -> Any:
        return getattr(RunSchedule(self._settings, self._events.values(), self._losses), name)


def schedule(**settings: Any) -> Told:
    return Told(run_settings({**BASE, **settings}))


def feed(made: Told, losses: Sequence[float | None]) -> Told:
    """Round 0 has the first loss, and so on; the nodes' losses are all 1."""
    for number, loss in enumerate(losses):
        if number:
            made.trained(number, {"a": 1.0, "b": 1.0})
        made.evaluated(number, loss)
    return made


def rate(made: Told, round_: int) -> float:
    return made.plan(round_).schedule.rate((round_ - 1) * 4)


def test_one_cosine_over_the_whole_run() -> None:
    made = schedule()
    sent = made.plan(1).schedule
    assert sent == CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=40)
    assert made.plan(7).schedule == sent, "the step moves, the curve does not"


def test_warm_up_happens_once_for_any_type() -> None:
    made = schedule(**{"scheduler-type": "reduce-on-plateau", "warmup-steps": 4})
    sent = made.plan(1).schedule
    assert sent == ConstantSchedule(value=1e-3, warmup_steps=4)
    assert [sent.rate(step) for step in range(6)] == pytest.approx(
        [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3]
    )


def test_warm_restarts_are_torchs() -> None:
    made = schedule(**{"scheduler-type": "cosine-warm-restarts"})
    # T_i = 15: cos 0, 1/3, 2/3 of pi -> 1, 3/4, 1/4 of the way; then T_i = 30 begins at the top.
    span = 1e-3 - 5e-7
    assert [rate(made, n) for n in (1, 6, 11, 16, 46)] == pytest.approx(
        [1e-3, 5e-7 + 0.75 * span, 5e-7 + 0.25 * span, 1e-3, 1e-3]
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 15, 2, 5e-7)
    for number in range(1, 101):
        assert rate(made, number) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_a_plateau_halves() -> None:
    made = schedule(**{"scheduler-type": "reduce-on-plateau", "initial-lr": 1.5e-6})
    # 1.0 is the best; five more are bad ones within patience; the sixth bad one halves.
    rates = []
    for number, loss in enumerate([1.0] * 7 + [0.5] + [0.6] * 6):
        made.trained(number, {})
        made.evaluated(number, loss)
        rates.append((rate(made, number + 1), made.plan(number + 1).reasons))
    assert [value for value, _ in rates] == pytest.approx(
        [1.5e-6] * 6 + [7.5e-7] * 7 + [5e-7]  # 3.75e-7 is below the lowest rate
    )
    assert [number for number, (_, reasons) in enumerate(rates) if reasons] == [6, 13]


@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=100))  # no rise of them is a spike
def test_plateaus_are_torchs(losses: list[float]) -> None:
    made = schedule(**{"scheduler-type": "reduce-on-plateau"})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=5, threshold=1e-4, min_lr=5e-7, eps=0.0
    )
    for number, loss in enumerate(losses):
        made.evaluated(number, loss)
        theirs.step(loss)
        # Ours is not lowered below the floor of the other rules, 1e-5, which is far.
        assert made._plateau.rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_a_stall_lowers_rate_and_mu_once_per_evaluation() -> None:
    made = schedule(**{"dynamic-training-decay": True, "proximal-mu": 0.1})
    # Third loss: (1.0 - 0.995) / 1.0 = 0.5 % < 1 %: stall, x 0.8. Fourth: (0.999 - 0.5) / 0.999:
    # fine. Fifth: (0.995 - 0.499) / 0.995: fine. Sixth: (0.5 - 0.498) / 0.5 = 0.4 %: stall.
    losses = [1.0, 0.999, 0.995, 0.5, 0.499, 0.498]
    seen = []
    for number, loss in enumerate(losses):
        made.trained(number, {"a": 1.0, "b": 1.0, "c": 1.0})
        made.evaluated(number, loss)
        plan = made.plan(number + 1)
        seen.append((round(plan.schedule.rate(0) / 1e-3, 6), round(plan.proximal_mu, 9)))
    assert seen == [(1.0, 0.1)] * 2 + [(0.8, 0.08)] * 3 + [(0.64, 0.064)]


def test_a_divergence_raises_mu_and_never_the_rate() -> None:
    made = schedule(**{"dynamic-training-decay": True, "proximal-mu": 0.1})
    feed(made, [1.0, 1.0, 1.06])  # (1.0 - 1.06) / 1.0 = -6 % < -5 %
    plan = made.plan(3)
    assert plan.reasons == ("divergence",)
    assert plan.schedule.rate(0) == pytest.approx(1e-3 / 1.1)
    assert plan.proximal_mu == pytest.approx(0.105)


def test_decay_has_floors() -> None:
    made = schedule(**{"dynamic-training-decay": True, "proximal-mu": 0.1})
    feed(made, [1.0] * 60)
    assert made.plan(60).schedule.rate(0) == pytest.approx(1e-5)
    assert made.plan(60).proximal_mu == pytest.approx(0.001)
    slow = schedule(**{"dynamic-training-decay": True, "initial-lr": 2e-6})
    feed(slow, [1.0] * 60)
    assert slow.plan(60).schedule.rate(0) == pytest.approx(2e-6), "a floor raises nothing"
    assert slow.plan(60).proximal_mu == 0.0


def test_without_decay_a_stall_changes_nothing() -> None:
    made = feed(schedule(**{"proximal-mu": 0.1}), [1.0] * 9)
    assert made.plan(9).schedule.rate(0) == pytest.approx(1e-3)
    assert made.plan(9).proximal_mu == 0.1
    assert made.plan(9).reasons == ()


def test_mu_rises_while_the_nodes_lie_apart() -> None:
    made = schedule(**{"adaptive-mu-enabled": True, "proximal-mu": 0.1})
    # Population deviation of 1 and 4 is 1.5 > 1.2; of 1 and 3 it is 1.
    made.trained(1, {"a": 1.0, "b": 4.0})
    assert made.plan(2).reasons == ("mu_spread",)
    assert made.plan(2).proximal_mu == pytest.approx(0.105)
    made.trained(2, {"a": 1.0, "b": 4.0})
    assert made.plan(3).proximal_mu == pytest.approx(0.11025)
    made.trained(3, {"a": 1.0, "b": 3.0})
    assert made.plan(4).proximal_mu == pytest.approx(0.11025)
    assert made.plan(4).reasons == ()
    made.trained(4, {"a": 9.0})
    assert made.plan(5).proximal_mu == pytest.approx(0.11025), "one node lies apart from nobody"


def test_hard_nodes_are_boosted() -> None:
    made = schedule(**{"adaptive-lr-enabled": True})
    # The mean is 2; 4.1 and more is far above it.
    made.trained(1, {"a": 1.0, "b": 1.0, "c": 1.9, "d": 4.1})
    assert made.plan(2).boosts == {"d": 1.15}
    made.trained(2, {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0})
    assert made.plan(3).boosts == {}, "4.0 is not more than twice 2.0"
    assert schedule().plan(1).boosts == {}


def test_a_spike_halves_one_round_and_suspends_boosts() -> None:
    made = schedule(**{"adaptive-lr-enabled": True})
    for number, loss in enumerate([1.0, 1.1, 1.6]):  # 1.6 - 1.0 > 0.5
        made.trained(number, {"a": 0.1, "b": 0.1, "c": 5.0})
        made.evaluated(number, loss)
    plan = made.plan(3)
    assert plan.reasons == ("spike",)
    assert plan.schedule.rate(0) == pytest.approx(5e-4)
    assert plan.boosts == {}
    made.trained(3, {"a": 0.1, "b": 0.1, "c": 5.0})
    made.evaluated(3, 1.2)  # 1.2 - 1.1
    assert made.plan(4).schedule.rate(0) == pytest.approx(1e-3)
    assert made.plan(4).boosts == {"c": 1.15}


def test_going_back() -> None:
    made = schedule(**{"rollback-factor": 2.0})
    feed(made, [0.5, 0.25, 0.55])
    assert made.best == (1, 0.25)
    assert made.wants_rollback() is None, "one bad evaluation may be noise"
    made.evaluated(3, 0.51)
    assert made.wants_rollback() == 1
    made.rolled_back(1)
    assert made.wants_rollback() is None
    assert made.plan(4).schedule.rate(0) == pytest.approx(5e-4)
    assert made.plan(4).reasons == ("rollback",)
    made.evaluated(4, 0.6)
    assert made.wants_rollback() is None
    made.evaluated(5, 0.6)
    assert made.wants_rollback() == 1
    made.rolled_back(1)
    assert made.plan(6).schedule.rate(0) == pytest.approx(2.5e-4)
    assert feed(schedule(), [0.1, 9.0, 9.0, 9.0]).wants_rollback() is None, "0 is never"


def test_a_spike_halves_no_round_after_one_that_was_not_evaluated() -> None:
    made = feed(schedule(), [1.0, 1.1, 1.6, None])  # 1.6 - 1.0 > 0.5, in round 2 only
    assert made.plan(4).schedule.rate(0) == pytest.approx(1e-3)
    assert made.plan(4).reasons == ()


@pytest.mark.parametrize("kind", ["cosine", "cosine-warm-restarts", "reduce-on-plateau"])
def test_guards_halve_below_the_floor_of_decay(kind: str) -> None:
    slow = {"scheduler-type": kind, "initial-lr": 1.5e-6}
    whole = schedule(**slow).plan(3).schedule.rate(0)
    spiked = feed(schedule(**slow), [1.0, 1.1, 1.6])
    assert spiked.plan(3).schedule.rate(0) == pytest.approx(whole / 2)
    made = feed(schedule(**slow, **{"rollback-factor": 2.0}), [0.5, 1.1, 1.1])
    made.rolled_back(0)
    assert made.plan(3).schedule.rate(0) == pytest.approx(whole / 2)
    made.rolled_back(0)
    assert made.plan(3).schedule.rate(0) == pytest.approx(5e-7), "whole / 4 is below the lowest"


def test_a_rollback_takes_the_place_of_a_spike() -> None:
    made = feed(schedule(**{"rollback-factor": 2.0}), [1.0, 0.5, 3.0, 3.0])  # 3.0 - 0.5 > 0.5
    assert made.plan(4).reasons == ("spike",)
    made.rolled_back(1)
    assert made.plan(4).reasons == ("rollback",)
    assert made.plan(4).schedule.rate(0) == pytest.approx(5e-4)


def test_the_floor_of_decay_holds_to_the_end_of_the_cosine() -> None:
    made = feed(schedule(**{"dynamic-training-decay": True}), [1.0] * 60)
    assert made.plan(10).schedule.rate(39) == pytest.approx(1e-5), "the end, 1e-4, was above"


def test_a_plateau_keeps_its_best_over_a_rollback() -> None:
    made = schedule(**{"scheduler-type": "reduce-on-plateau"})
    feed(made, [0.5] + [0.9] * 5)  # five bad ones, within patience
    made.rolled_back(0)  # 1e-3 / 2, and the count is 0
    rates = []
    for number, loss in enumerate([0.8, 0.78, 0.76, 0.74, 0.72, 0.7], 6):
        made.trained(number, {})
        made.evaluated(number, loss)
        rates.append(rate(made, number + 1))
    assert rates == pytest.approx([5e-4] * 5 + [2.5e-4]), "each is worse than 0.5"


def test_mu_rises_from_its_floor_at_once() -> None:
    made = schedule(
        **{
            "dynamic-training-decay": True,
            "adaptive-mu-enabled": True,
            "proximal-mu": 0.1,
        }
    )
    feed(made, [1.0] * 60)  # 0.1 * 0.8**58 is far below 0.001
    made.trained(60, {"a": 1.0, "b": 9.0})
    assert made.plan(61).proximal_mu == pytest.approx(0.00105)  # 0.001 * 1.05


def test_patience() -> None:
    made = feed(schedule(**{"early-stopping-patience": 3}), [1.0, 1.0, 1.1, 0.9, 1.0, 0.9])
    assert not made.should_stop(), "0.9 in round 3 began it anew; 1.0 and an equal 0.9 are two"
    made.evaluated(6, 0.95)
    assert made.should_stop()
    assert not feed(schedule(), [1.0] * 99).should_stop()


def test_a_missing_evaluation_counts_for_nothing() -> None:
    made = feed(schedule(**{"early-stopping-patience": 2}), [1.0, None, 1.1, None, None])
    assert not made.should_stop()
    assert made.best == (0, 1.0)


events = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(0.001, 50.0)),
        st.dictionaries(st.sampled_from("abc"), st.floats(0.0, 20.0)),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cosine", "cosine-warm-restarts", "reduce-on-plateau"])
@given(seen=events)
def test_a_replay_plans_the_same_and_rates_stay_in_bounds(kind: str, seen: Any) -> None:
    settings = {
        "scheduler-type": kind,
        "dynamic-training-decay": True,
        "adaptive-lr-enabled": True,
        "adaptive-mu-enabled": True,
        "proximal-mu": 0.1,
        "rollback-factor": 1.5,
    }
    made, back, plans = schedule(**settings), {}, []
    for number, (loss, losses) in enumerate(seen):
        made.trained(number, losses)
        made.evaluated(number, loss)
        goal = made.wants_rollback()
        if goal is not None:
            made.rolled_back(goal)
            back[number] = goal
        plan = made.plan(number + 1)
        assert plan == made.plan(number + 1)
        plans.append(plan)
        value = plan.schedule.rate(0)
        assert math.isfinite(value)
        assert 5e-7 <= value <= 1e-3 * (1 + 1e-12)
        assert all(boost == 1.15 for boost in plan.boosts.values())
        assert 0.001 <= plan.proximal_mu < 10.0
    again = schedule(**settings)
    for number, (loss, losses) in enumerate(seen):
        again.trained(number, losses)
        again.evaluated(number, loss)
        if number in back:
            again.rolled_back(back[number])
        assert again.plan(number + 1) == plans[number]
