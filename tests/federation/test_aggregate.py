from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.federation.fakes import raw_payload
from zk0d.config.run import (
    AggregationSettings,
    CodecName,
    EvaluationSettings,
    RuleName,
    TrainingSettings,
)
from zk0d.errors import Zk0dError
from zk0d.federation.admission import Standing, check_norm, check_reply, outliers
from zk0d.federation.aggregate import (
    RULES,
    ServerStep,
    Weighted,
    aggregate,
    clip_scales,
    clipped,
    norm,
    trimmed_mean,
    weighted_mean,
)
from zk0d.federation.codec import PIECE
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.spool import NotAdmitted, Spool, SpooledUpdate
from zk0d.federation.update import Manifest, Payload, UpdateError
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.record.events import NodeFigures, UpdateRefused

STATISTICS = Statistics(features={"action": FeatureStatistics.of(np.ones((2, 2)))})
SPEC = PolicySpec(
    policy="act", model_name="tiny", seed=0, fps=30, state_width=2, action_width=2, cameras={}
)


def weights(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.full(4, value, np.float32)}


def task(**changes: object) -> Train:
    facts: dict[str, object] = {
        "run": "r",
        "round": 3,
        "spec": SPEC,
        "base": Payload.of(weights(), "weights").manifest.sha256,
        "statistics": STATISTICS,
        "statistics_sha256": STATISTICS.sha256,
        "training": TrainingSettings(
            local_steps=10, batch_size=8, uplink_codec="fp32", drift_correction="none"
        ),
        "evaluation": EvaluationSettings(),
        "first_step": 20,
        "schedule": CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=100),
        "seed": 0,
        "proximal_mu": 0.0,
        "deadline_seconds": 60.0,
    }
    return Train.model_validate({**facts, **changes})


def reply(of: Train, **changes: object) -> TrainReply:
    figures: dict[str, object] = {
        "steps": of.training.local_steps,
        "samples": of.training.frames,
        "loss": 1.0,
        "policy_loss": 1.0,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
    }
    facts: dict[str, object] = {"name": "n", "round": of.round, "base": of.base}
    for key, value in changes.items():
        (figures if key in NodeFigures.model_fields else facts)[key] = value
    return TrainReply.model_validate({**facts, "figures": figures})


MODEL = Payload.of(weights(), "weights").manifest


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def admit(spool: Spool, given: Train, answer: TrainReply, payload: Payload | None) -> SpooledUpdate:
    checked = check_reply(given, answer, payload, MODEL, usable_frames=100)
    return spool.take("n", checked)


def test_a_good_update_is_admitted_with_its_norm_and_freed(spool: Spool) -> None:
    given, payload = task(), Payload.of(weights(2.0), "delta")
    taken = admit(spool, given, reply(given), payload)
    assert taken.norm == pytest.approx(2.0 * np.sqrt(10))
    assert payload.chunks == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 2}, "wrong_round"),
        ({"base": "0" * 64}, "wrong_base"),
        ({"samples": 81}, "implausible_samples"),
        ({"samples": 10**9}, "implausible_samples"),
        ({"steps": 11}, "implausible_samples"),
        ({"steps": 0}, "implausible_samples"),
        ({"loss": float("nan")}, "not_finite"),
        ({"grad_norm": float("inf")}, "not_finite"),
    ],
)
def test_an_answer_that_is_not_to_the_question(
    spool: Spool, change: dict[str, object], reason: str
) -> None:
    given = task()
    with pytest.raises(NotAdmitted) as error:
        admit(spool, given, reply(given, **change), Payload.of(weights(1.0), "delta"))
    assert error.value.reason == reason


PACED = TrainingSettings(
    local_steps=16, batch_size=8, round_minutes=1.0, uplink_codec="fp32", drift_correction="none"
)


@pytest.mark.parametrize("steps", [2, 16, 32])
def test_with_a_pace_steps_within_the_bounds_count(spool: Spool, steps: int) -> None:
    given = task(training=PACED)
    answer = reply(given, steps=steps, samples=8 * steps)
    admit(spool, given, answer, Payload.of(weights(1.0), "delta"))


@pytest.mark.parametrize(
    ("steps", "samples", "said"),
    [
        (33, 33 * 8, "33 steps are claimed, 2 to 32 were asked for"),
        (1, 8, "1 steps are claimed, 2 to 32"),
        (0, 8, "0 steps are claimed"),
        (4, 33, "33 samples are claimed, 4 steps have at most 32"),
        (4, 0, "0 samples are claimed"),
    ],
)
def test_with_a_pace_a_node_cannot_claim_what_it_likes(
    spool: Spool, steps: int, samples: int, said: str
) -> None:
    given = task(training=PACED)
    answer = reply(given, steps=steps, samples=samples)
    with pytest.raises(NotAdmitted, match=said) as error:
        admit(spool, given, answer, Payload.of(weights(1.0), "delta"))
    assert error.value.reason == "implausible_samples"


def test_samples_of_a_node_that_has_no_frames() -> None:
    given = task()
    with pytest.raises(NotAdmitted) as error:
        check_reply(given, reply(given), Payload.of(weights(1.0), "delta"), MODEL, usable_frames=0)
    assert error.value.reason == "implausible_samples"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_an_update_that_is_not_finite(spool: Spool, tmp_path: Path, value: float) -> None:
    given = task()
    poisoned = weights(1.0)
    poisoned["b"][2] = value
    with pytest.raises(NotAdmitted, match="tensor 'b' holds NaN or infinity") as error:
        admit(spool, given, reply(given), raw_payload(poisoned))
    assert error.value.reason == "not_finite"
    assert not list((tmp_path / "spool").iterdir()), "nothing of it is left"


@pytest.mark.parametrize("codec", ["int8", "int4", "bf16"])
def test_a_poisoned_scale_or_value(spool: Spool, codec: CodecName) -> None:
    import hashlib

    good = Payload.of({"a": np.ones(8, np.float32)}, "delta", codec)
    data = bytearray(good.chunks[0])
    data[:4] = b"\xff\xff\xff\x7f"  # a NaN as float32 and, in two, as bfloat16
    entry = good.manifest.tensors[0].model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    bad = Payload(Manifest(kind="delta", codec=codec, tensors=(entry,)), [bytes(data)])
    with pytest.raises(NotAdmitted, match="NaN or infinity"):
        spool.take("n", bad)


def test_an_update_without_tensors_or_of_the_wrong_kind(spool: Spool) -> None:
    given = task()
    for payload, reason in (
        (None, "no_payload"),
        (Payload.of(weights(1.0), "weights"), "wrong_kind"),
        (Payload.of(weights(1.0), "delta", "int8"), "wrong_codec"),
    ):
        with pytest.raises(NotAdmitted) as error:
            admit(spool, given, reply(given), payload)
        assert error.value.reason == reason


def test_an_altered_update_names_its_tensor(spool: Spool) -> None:
    given = task()
    payload = Payload.of(weights(1.0), "delta")
    damaged = bytearray(payload.chunks[0])
    damaged[-1] ^= 1
    payload.chunks[0] = bytes(damaged)
    with pytest.raises(UpdateError, match="tensor 'b'"):
        admit(spool, given, reply(given), payload)


def test_norms_against_the_weights() -> None:
    check_norm(9.9, weights_norm=10.0, max_ratio=1.0)
    check_norm(1e9, weights_norm=10.0, max_ratio=0.0)
    with pytest.raises(NotAdmitted) as error:
        check_norm(10.1, weights_norm=10.0, max_ratio=1.0)
    assert error.value.reason == "norm_cap"
    with pytest.raises(NotAdmitted) as error:
        check_norm(0.0, weights_norm=10.0, max_ratio=1.0)
    assert error.value.reason == "zero_update"


def test_norms_against_the_rounds_median() -> None:
    assert outliers({"a": 1.0, "b": 1.2, "c": 5.9}, 5.0) == {}, "5.9 < 5 x 1.2"
    found = outliers({"a": 1.0, "b": 1.2, "c": 6.1}, 5.0)
    assert list(found) == ["c"]
    assert found["c"].reason == "norm_outlier"
    assert outliers({"a": 1.0, "b": 1000.0}, 5.0) == {}, "two have no median to be far from"
    assert outliers({"a": 1.0, "b": 1.0, "c": 1000.0}, 0.0) == {}


def refused(*rounds: int, key: str = "x", strike: bool = True) -> list[UpdateRefused]:
    return [
        UpdateRefused(round=number, node=key, key=key, reason="norm_cap", strike=strike)
        for number in rounds
    ]


def test_three_strikes() -> None:
    standing = Standing(refused(1, 2), most=3)
    assert standing.strikes("x") == 2
    assert not standing.sits_out("x", 3)
    standing = Standing([*refused(1, 2, 4), *refused(4, key="y", strike=False)], 3)
    assert standing.strikes("x") == 3
    assert [n for n in range(5, 20) if standing.sits_out("x", n)] == list(range(5, 15))
    assert not standing.sits_out("y", 5)
    assert Standing(refused(1, 2, 4, 15), 3).strikes("x") == 1, "it begins again"
    never = Standing(refused(*range(9)), most=0)
    assert never.strikes("x") == 9
    assert not never.sits_out("x", 9)


def spooled(
    spool: Spool, values: list[dict[str, np.ndarray]], codec: CodecName = "fp32"
) -> list[SpooledUpdate]:
    return [
        spool.take(str(number), Payload.of(each, "delta", codec))
        for number, each in enumerate(values)
    ]


def test_what_is_spooled_together_is_thrown_away_together(spool: Spool) -> None:
    def take(name: str) -> SpooledUpdate:
        with spool.undoing() as spooled:
            spooled(name, Payload.of(weights(1.0), "delta"))
            second = spooled(f"{name}.variate", Payload.of(weights(2.0), "variates"))
            if name == "bad":
                raise NotAdmitted("it is too long.")
        return second

    folder = take("good").path.parent
    with pytest.raises(NotAdmitted):
        take("bad")
    assert sorted(path.name for path in folder.iterdir()) == ["good", "good.variate"]


def test_the_mean_is_weighted(spool: Spool) -> None:
    updates = spooled(spool, [weights(1.0), weights(4.0)])
    moved = weights(10.0)
    combined = aggregate(
        moved,
        [Weighted(updates[0], 1.0), Weighted(updates[1], 3.0)],
        weighted_mean,
        ServerStep(0.0, 1.0),
    )
    assert np.allclose(moved["a"], 10.0 + (1.0 + 3 * 4.0) / 4)
    assert combined.norm == pytest.approx(3.25 * np.sqrt(10))
    assert combined.agreement == pytest.approx(1.0), "both pull the same way"


@pytest.mark.parametrize("name", get_args(RuleName))
def test_agreement_is_how_much_updates_pull_the_same_way(spool: Spool, name: RuleName) -> None:
    random = np.random.default_rng(0)
    shapes = {"b": (3, 5), "a": (PIECE + 4099,)}
    values = [
        {n: random.standard_normal(s).astype(np.float32) + 0.3 for n, s in shapes.items()}
        for _ in range(5)
    ]
    updates = [Weighted(each, 1.0, 0.5) for each in spooled(spool, values)]
    moved = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    found = aggregate(moved, updates, RULES[name](5), ServerStep(0.0, 1.0))
    flat = [np.concatenate([0.5 * each[n].ravel() for n in shapes]) for each in values]
    whole = np.concatenate([moved[n].ravel() for n in shapes]).astype(np.float64)
    lengths = [float(np.linalg.norm(each)) for each in flat]
    length = float(np.linalg.norm(whole))
    assert found.norm == pytest.approx(length, rel=1e-5)
    assert found.agreement == pytest.approx(length / np.mean(lengths), rel=1e-5)
    for each, own, cosine in zip(flat, lengths, found.cosines, strict=True):
        assert cosine == pytest.approx(float(each @ whole) / (own * length), abs=1e-4)


def test_updates_that_cancel_do_not_agree(spool: Spool) -> None:
    updates = [Weighted(each, 1.0) for each in spooled(spool, [weights(1.0), weights(-1.0)])]
    found = aggregate(weights(10.0), updates, weighted_mean, ServerStep(0.0, 1.0))
    assert (found.norm, found.agreement, found.cosines) == (0.0, 0.0, (0.0, 0.0))


@pytest.mark.parametrize("codec", get_args(CodecName))
@pytest.mark.parametrize("name", get_args(RuleName))
def test_rules_against_numpy(spool: Spool, codec: CodecName, name: RuleName) -> None:
    """Tensors longer than a piece, of odd sizes, encoded each way."""
    random = np.random.default_rng(0)
    shapes = {"a": (PIECE + 4099,), "b": (3, 5), "c": ()}
    values = [
        {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        for _ in range(5)
    ]
    arrived = [Payload.of(each, "delta", codec).arrays() for each in values]
    shares = [1.0, 2.0, 1.0, 0.5, 1.0]
    moved = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    updates = [Weighted(u, w) for u, w in zip(spooled(spool, values, codec), shares, strict=True)]
    aggregate(moved, updates, RULES[name](5), ServerStep(0.0, 1.0))
    for tensor in shapes:
        stack = np.stack([each[tensor] for each in arrived]).astype(np.float64)
        if name == "mean":
            expected = np.average(stack, axis=0, weights=shares)
        elif name == "median":
            expected = np.median(stack, axis=0)
        else:
            expected = np.sort(stack, axis=0)[1:-1].mean(axis=0)
        assert np.allclose(moved[tensor], expected, atol=1e-6)


def test_the_median_of_an_even_number(spool: Spool) -> None:
    moved = weights(0.0)
    updates = spooled(spool, [weights(v) for v in (1.0, 2.0, 4.0, 100.0)])
    aggregate(moved, [Weighted(u, 1.0) for u in updates], RULES["median"](4), fedavg())
    assert np.allclose(moved["a"], 3.0)


def fedavg() -> ServerStep:
    return ServerStep(0.0, 1.0)


@pytest.mark.parametrize(("nodes", "fraction", "left"), [(3, 0.25, 1), (4, 0.25, 2), (8, 0.4, 2)])
def test_the_number_of_trimmed_updates(
    spool: Spool, nodes: int, fraction: float, left: int
) -> None:
    updates = spooled(spool, [weights(float(v)) for v in range(nodes)])
    moved = weights(0.0)
    rule = trimmed_mean(nodes, fraction)
    aggregate(moved, [Weighted(u, 1.0) for u in updates], rule, fedavg())
    cut = (nodes - left) // 2
    assert np.allclose(moved["a"], np.mean(range(cut, nodes - cut)))


def test_two_updates_cannot_be_trimmed() -> None:
    with pytest.raises(Zk0dError, match="at least 3 updates, 2 came"):
        RULES["trimmed-mean"](2)


def test_clipping_shortens_only_the_long(spool: Spool) -> None:
    assert clip_scales([1.0, 2.0, 30.0], 0.0) == [1.0, 1.0, 1.0]
    assert clip_scales([1.0, 2.0, 30.0], 1.5) == [1.0, 1.0, pytest.approx(0.1)]
    moved = weights(0.0)
    updates = spooled(spool, [weights(1.0), weights(30.0)])
    aggregate(
        moved,
        [Weighted(updates[0], 1.0), Weighted(updates[1], 1.0, scale=0.1)],
        weighted_mean,
        fedavg(),
    )
    assert np.allclose(moved["a"], 2.0)


def around(direction: np.ndarray, count: int, noise: float) -> list[np.ndarray]:
    """Vectors of a few thousand values that have a direction in common."""
    random = np.random.default_rng(1)
    own = random.standard_normal((count, direction.size)).astype(np.float32)
    return [direction + np.float32(noise) * each for each in own]


def clip(
    spool: Spool, vectors: list[np.ndarray], shares: list[float] | None = None, **settings: Any
) -> list[Weighted]:
    """What norm clipping makes of updates of two tensors, one longer than a piece."""
    cut = PIECE + 7
    values = [{"b": each[:cut], "a": each[cut:]} for each in vectors]
    updates = spooled(spool, values)
    given = [Weighted(u, w) for u, w in zip(updates, shares or [1.0] * len(updates), strict=True)]
    asked = AggregationSettings.model_validate({"norm-clip-factor": 1.0, **settings})
    return clipped(values[0], given, asked)


DIRECTION = np.random.default_rng(0).standard_normal(PIECE + 4099).astype(np.float32)


def kept(updates: list[Weighted]) -> list[bool]:
    return [each.kept for each in updates]


def test_a_poisoner_whose_shortened_update_points_against_the_others_is_left_out(
    spool: Spool,
) -> None:
    good = around(DIRECTION, 3, 1.0)
    updates = clip(spool, [*good, -4.0 * good[0]])
    assert kept(updates) == [True, True, True, False]
    assert updates[3].scale < 0.3, "it is shortened, too"
    cut = PIECE + 7
    sizes = {"b": cut, "a": DIRECTION.size - cut}
    moved: dict[str, np.ndarray] = {n: np.zeros(size, np.float32) for n, size in sizes.items()}
    found = aggregate(moved, updates, weighted_mean, fedavg())
    scaled = [each * np.float32(u.scale) for each, u in zip(good, updates, strict=False)]
    expected = np.mean(scaled, axis=0)
    whole = np.concatenate([moved["b"], moved["a"]])
    assert np.allclose(whole, expected, atol=1e-6), "the mean is the others'"
    # It came, and it pulls the other way: agreement counts it, and so does its cosine.
    lengths = [each.update.norm * each.scale for each in updates]
    assert found.agreement == pytest.approx(np.linalg.norm(expected) / np.mean(lengths), rel=1e-4)
    assert found.cosines[3] < -0.5 < 0.5 < min(found.cosines[:3])


def test_no_update_is_left_out_where_all_agree_or_say_other_things(spool: Spool) -> None:
    assert all(kept(clip(spool, around(DIRECTION, 4, 1.0))))
    assert all(kept(clip(spool, around(0 * DIRECTION, 8, 1.0)))), "nothing in common"


def test_who_is_left_out_goes_by_weight(spool: Spool) -> None:
    vectors = [DIRECTION, DIRECTION, -DIRECTION]
    assert kept(clip(spool, vectors)) == [True, True, False]
    assert kept(clip(spool, vectors, [0.1, 0.1, 1.0])) == [False, False, True]


@pytest.mark.parametrize("turned", [0, 1, 2, 3, 4])
def test_not_everybody_is_left_out(spool: Spool, turned: int) -> None:
    """Two against two cancel to the last bit or to rounding."""
    signs = [-1.0] * turned + [1.0] * (4 - turned)
    updates = clip(spool, [np.float32(sign) * DIRECTION for sign in signs])
    assert any(kept(updates))
    if turned == 2:
        assert all(kept(updates))


def test_of_two_no_update_is_left_out(spool: Spool) -> None:
    assert kept(clip(spool, [DIRECTION, -1.5 * DIRECTION])) == [True, True]


@pytest.mark.parametrize(
    "settings",
    [{"norm-clip-factor": 0.0}, {"aggregation": "median"}, {"aggregation": "trimmed-mean"}],
)
def test_only_norm_clipping_of_a_mean_leaves_out(spool: Spool, settings: dict[str, Any]) -> None:
    assert all(kept(clip(spool, [DIRECTION, DIRECTION, DIRECTION, -DIRECTION], **settings)))


def test_no_update_has_no_mean() -> None:
    with pytest.raises(Zk0dError, match="no update was admitted"):
        aggregate(weights(), [], weighted_mean, fedavg())


def steps(step: ServerStep, spool: Spool, values: list[float]) -> list[float]:
    moved, seen = weights(0.0), []
    for value in values:
        update = spool.take("n", Payload.of(weights(value), "delta"))
        aggregate(moved, [Weighted(update, 1.0)], weighted_mean, step)
        seen.append(float(moved["b"][1]))
    return seen


def test_without_momentum_the_step_is_fedavg(spool: Spool) -> None:
    step = fedavg()
    assert steps(step, spool, [1.5, 1.0]) == [1.5, 2.5]
    assert step.velocity is None


def test_momentum_is_fedavgms(spool: Spool) -> None:
    # V = 1, G = 2; V = 0.5 + 1 = 1.5, G = 5; V = 0.75 + 0 = 0.75, G = 6.5
    assert steps(ServerStep(0.5, 2.0), spool, [1.0, 1.0, 0.0]) == [2.0, 5.0, 6.5]


def test_nesterovs_momentum_looks_ahead(spool: Spool) -> None:
    # V = 1, G = 1 + 0.5; V = 1.5, G = 1.5 + 1 + 0.75 = 3.25; V = 0.75, G = 3.25 + 0 + 0.375
    assert steps(ServerStep(0.5, 1.0, nesterov=True), spool, [1.0, 1.0, 0.0]) == [1.5, 3.25, 3.625]


def test_nesterov_is_torchs(spool: Spool) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    deltas = [0.3, -0.2, 0.5, 0.1]
    ours = steps(ServerStep(0.9, 0.7, nesterov=True), spool, deltas)
    for delta, value in zip(deltas, ours, strict=True):
        parameter.grad = torch.tensor([-delta])
        theirs.step()
        assert value == pytest.approx(float(parameter.detach()), rel=1e-5)


def test_the_norm_is_over_all_tensors() -> None:
    one = np.ones(1, np.float32)
    assert norm({"a": 3 * one, "b": 4 * one[None]}) == pytest.approx(5.0)
