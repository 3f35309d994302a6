"""Learning rate, mu, going back and ending early: one owner, once a round, a fold over what is
committed. Formulas: docs/training.md. No torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zk0d.config.run import RunSettings
from zk0d.learning.schedule import ConstantSchedule, CosineSchedule
from zk0d.record.events import RoundCommitted

STALL, DIVERGENCE = 0.8, 1.1
#: Relative change of the loss over two evaluations: below the first it stalls, below minus the
#: second it diverges.
STALL_BELOW, DIVERGENCE_BELOW = 0.01, 0.05
#: dynamic-training-decay lowers no learning rate below this.
DECAY_FLOOR = 1e-5
#: A loss that rises by more than this over two evaluations is a spike.
SPIKE = 0.5
#: What a spike or a rollback multiplies the learning rate by.
HALF = 0.5
PLATEAU_FACTOR, PLATEAU_THRESHOLD = 0.5, 1e-4
#: Evaluations without a better loss after which reduce-on-plateau lowers.
PLATEAU_PATIENCE = 5
#: No schedule but the one cosine goes below this learning rate.
LOWEST_RATE = 5e-7
#: Rounds of the first cosine of cosine-warm-restarts, and how many times as long each next one is.
RESTART_AFTER, RESTART_LONGER = 15, 2
#: adaptive-lr-enabled: a loss above so many times the mean is high, and what the rate is raised by.
HIGH_LOSS, RATE_RAISE = 2.0, 1.15
#: adaptive-mu-enabled: a standard deviation above the first is wide, what mu is raised by, and what
#: no adjustment lowers it below.
WIDE_SPREAD, MU_RAISE, LOWEST_MU = 1.2, 1.05, 0.001


@dataclass(frozen=True)
class RoundPlan:
    """What the server applies in one round. ``boosts`` names only nodes that have one."""

    schedule: CosineSchedule | ConstantSchedule
    proximal_mu: float
    boosts: dict[str, float]
    reasons: tuple[str, ...]


class RunSchedule:
    """A run's schedule after the rounds that are committed.

    It is rebuilt from them for each round, so that a resumed run continues as it would have.

    Parameters
    ----------
    committed
        The committed rounds in order.
    losses
        The nodes' policy losses of each of them: by round, then by node.
    """

    def __init__(
        self,
        settings: RunSettings,
        committed: Iterable[RoundCommitted] = (),
        losses: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        self._settings = settings.schedule
        self._total_steps = settings.total_steps
        self._decay_scale = 1.0  #: of the learning rate, by stalls and divergences; has a floor
        self._rollback_scale = 1.0
        self._mu_scale = 1.0
        self._node_losses: dict[str, float] = {}
        self._best: tuple[int, float] | None = None
        self._not_better = 0  #: evaluations since the best
        self._plateau = _Plateau(settings.schedule.initial_lr)
        self._reasons: list[str] = []
        self._seen: list[tuple[int, float]] = []  #: rounds and losses that still count
        self._fresh = False  #: whether the last committed round was evaluated
        for event in committed:
            if event.round:
                self._trained((losses or {}).get(event.round, {}))
            evaluation = event.evaluation
            self._evaluated(event.round, evaluation.loss if evaluation else None)
            if event.rolled_back_to is not None:
                self._rolled_back(event.rolled_back_to)

    # --- what happened ----------------------------------------------------------------------------

    def _trained(self, losses: Mapping[str, float]) -> None:
        """The nodes' policy losses of a committed round, by name."""
        self._reasons = []
        self._fresh = False
        self._node_losses = dict(losses)
        settings = self._settings
        adaptive = settings.adaptive_mu_enabled and settings.proximal_mu and len(losses) >= 2
        if adaptive and statistics.pstdev(losses.values()) > WIDE_SPREAD:
            self._adjust_mu(MU_RAISE)
            self._reasons.append("mu_spread")

    def _evaluated(self, round_: int, loss: float | None) -> None:
        """The held-out loss of a committed round; ``None`` if it was not measured."""
        if loss is None:
            return
        self._seen.append((round_, loss))
        self._fresh = True
        if self._best is None or loss < self._best[1]:
            self._best = round_, loss
            self._not_better = 0
        else:
            self._not_better += 1
        if self._settings.scheduler_type == "reduce-on-plateau" and self._plateau.step(loss):
            self._reasons.append("plateau")
        if self._settings.dynamic_training_decay:
            self._decay()

    def _rolled_back(self, to_round: int) -> None:
        """The weights went back to those of ``to_round``: what came after says nothing any more."""
        self._seen = [(number, loss) for number, loss in self._seen if number <= to_round]
        self._rollback_scale *= HALF
        self._plateau.forgive()
        self._reasons.append("rollback")

    # --- what follows -----------------------------------------------------------------------------

    @property
    def best(self) -> tuple[int, float] | None:
        """Round and loss of the best evaluation so far."""
        return self._best

    def wants_rollback(self) -> int | None:
        """The round whose weights should be gone back to, if any."""
        factor, seen = self._settings.rollback_factor, self._seen
        if not factor or self._best is None or len(seen) < 3:
            return None
        number, best = self._best
        if all(loss > factor * best and n > number for n, loss in seen[-2:]):
            return number
        return None

    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        patience = self._settings.early_stopping_patience
        return bool(patience) and self._not_better >= patience

    def plan(self, round_: int) -> RoundPlan:
        """What round ``round_`` is trained with; asking twice changes nothing."""
        spike = self._spike
        return RoundPlan(
            self._rates(round_, self._rollback_scale * (HALF if spike else 1.0)),
            self._mu,
            {} if spike else self._boosts(),
            (*self._reasons, "spike") if spike else tuple(self._reasons),
        )

    # --- rules ------------------------------------------------------------------------------------

    def _rates(self, round_: int, guard: float) -> CosineSchedule | ConstantSchedule:
        settings = self._settings
        if settings.scheduler_type == "cosine":
            return CosineSchedule(
                peak=self._scaled(settings.initial_lr, guard),
                end=self._scaled(settings.initial_lr * settings.final_lr_fraction, guard),
                warmup_steps=settings.warmup_steps,
                total_steps=self._total_steps,
            )
        if settings.scheduler_type == "cosine-warm-restarts":
            base = self._warm_restarts(round_)
        else:
            base = self._plateau.rate
        return ConstantSchedule(value=self._scaled(base, guard), warmup_steps=settings.warmup_steps)

    def _scaled(self, rate: float, guard: float) -> float:
        """``rate`` after decay, then after the guards. A floor raises nothing."""
        decayed = max(rate * self._decay_scale, min(rate, DECAY_FLOOR))
        return max(decayed * guard, min(decayed, LOWEST_RATE))

    def _warm_restarts(self, round_: int) -> float:
        """SGDR (Loshchilov, Hutter 2017), one step a round, as PyTorch's scheduler."""
        settings = self._settings
        lowest = min(LOWEST_RATE, settings.initial_lr)
        length, at = RESTART_AFTER, round_ - 1
        while at >= length:
            at -= length
            length *= RESTART_LONGER
        return lowest + (settings.initial_lr - lowest) * (1 + math.cos(math.pi * at / length)) / 2

    @property
    def _mu(self) -> float:
        mu = self._settings.proximal_mu
        return max(mu * self._mu_scale, min(mu, LOWEST_MU))

    def _boosts(self) -> dict[str, float]:
        losses = self._node_losses
        if not self._settings.adaptive_lr_enabled or len(losses) < 2:
            return {}
        high = HIGH_LOSS * statistics.fmean(losses.values())
        return {name: RATE_RAISE for name, loss in losses.items() if loss > high}

    @property
    def _spike(self) -> bool:
        if not self._fresh or len(self._seen) < 3:
            return False
        return self._seen[-1][1] - self._seen[-3][1] > SPIKE

    def _decay(self) -> None:
        """After an evaluation: zk0's joint adjustment of learning rate and mu, once."""
        if len(self._seen) < 3:
            return
        before, now = self._seen[-3][1], self._seen[-1][1]
        better = (before - now) / max(before, 1e-8)
        if better < -DIVERGENCE_BELOW:
            self._decay_scale /= DIVERGENCE
            self._adjust_mu(MU_RAISE)
            self._reasons.append("divergence")
        elif better < STALL_BELOW:
            self._decay_scale *= STALL
            self._adjust_mu(STALL)
            self._reasons.append("stall")

    def _adjust_mu(self, factor: float) -> None:
        """Scale mu, but not below its floor: a later rise would first have to climb back to it."""
        mu = self._settings.proximal_mu
        floor = min(1.0, LOWEST_MU / mu) if mu else 0.0
        self._mu_scale = max(self._mu_scale * factor, floor)


class _Plateau:
    """PyTorch's ReduceLROnPlateau: halves when evaluations bring no better loss."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._lowest = min(LOWEST_RATE, rate)
        self._best = math.inf
        self._bad = 0

    def forgive(self) -> None:
        """Restart the count; the best is kept, because a rollback returns to its weights."""
        self._bad = 0

    def step(self, loss: float) -> bool:
        """Take an evaluation; whether the rate was lowered."""
        if loss < self._best * (1.0 - PLATEAU_THRESHOLD):
            self._best, self._bad = loss, 0
        else:
            self._bad += 1
        if self._bad <= PLATEAU_PATIENCE:
            return False
        self._bad = 0
        lowered = max(self._lowest, self.rate * PLATEAU_FACTOR)
        changed, self.rate = lowered < self.rate, lowered
        return changed
