"""Episodes of a policy on an arm: LeRobot's own rollout, around a robot that is held.

LeRobot's ``lerobot-rollout`` has a policy, a robot and a loop that ends after a time or when an
event is set. What is here builds the three as it does, puts :class:`HeldRobot` between loop and
robot, and runs the loop once for each episode.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from lerobot.configs import PreTrainedConfig
from lerobot.robots import RobotConfig
from lerobot.rollout import RolloutConfig, build_rollout_context, create_strategy
from lerobot.rollout.configs import BaseStrategyConfig
from lerobot.rollout.inference import RTCInferenceConfig, SyncInferenceConfig
from lerobot.rollout.robot_wrapper import ThreadSafeRobot

from zk0d.arm.limits import HeldRobot, Limits
from zk0d.config.names import GROUPS_FOLDER
from zk0d.errors import UnavailableError

#: What a driver, a camera or LeRobot's loop fails with: a cable, a port, a picture that is late.
_FAILURES = (OSError, RuntimeError, ValueError, NotImplementedError)
#: How a try ends early: Ctrl-C; and by a system that shuts down, and a terminal that is closed.
_INTERRUPT, _OTHERS = signal.SIGINT, (signal.SIGTERM, signal.SIGHUP)


class Stop(Protocol):
    """What a person stops an episode with."""

    def watched(self, stop: threading.Event) -> contextlib.AbstractContextManager[None]:
        """Within it, ``stop`` is set as soon as the person wants it."""


@dataclass(frozen=True)
class Plan:
    """What is to be tried.

    Attributes
    ----------
    group
        Whose processors the policy has; empty if all arms have the same.
    renamed
        LeRobot's ``rename_map``.
    chunks_ahead
        Plan while the arm moves (LeRobot's real-time chunking).
    """

    folder: Path
    group: str
    robot: RobotConfig
    limits: Limits
    renamed: Mapping[str, str]
    task: str
    fps: float
    seconds: float
    device: str
    chunks_ahead: bool = False


@dataclass(frozen=True)
class Episode:
    """What an episode was.

    Attributes
    ----------
    commands, held
        How many commands the arm got, and how many of them were held back.
    ended
        Whether the whole try shall end: Ctrl-C, or a terminal that was closed.
    """

    seconds: float
    commands: int
    held: int
    ended: bool

    @property
    def rate(self) -> float:
        """Commands per second."""
        return self.commands / self.seconds if self.seconds else 0.0


class ConnectedArm:
    """The arm and the policy, until they are let go."""

    def __init__(self, plan: Plan, context: Any, stop: threading.Event) -> None:
        self._plan = plan
        self._context = context
        self._stop = stop
        self._strategy = create_strategy(context.runtime.cfg.strategy)
        self._held = HeldRobot(context.hardware.robot_wrapper.inner, plan.limits)
        context.hardware.robot_wrapper = ThreadSafeRobot(self._held)
        self._prepared = False
        self.ended = False

    def episode(self, stop: Stop) -> Episode:
        """Let the policy move the arm until the time is over or the person stops it.

        Raises
        ------
        UnavailableError
            If the arm, a camera or the policy failed.
        Zk0dError
            If the policy asked for what is no number.
        """
        self._stop.clear()
        self._held.begin()
        engine = self._context.policy.inference
        began = time.perf_counter()
        with self._moves(), stop.watched(self._stop), _failing("the episode was cut"):
            self._prepare(engine)
            try:
                self._strategy.run(self._context)
            finally:
                engine.pause()
            if engine.failed:
                raise RuntimeError("the policy failed while it planned")
        took = time.perf_counter() - began
        return Episode(took, self._held.commands, self._held.held, self.ended)

    def _prepare(self, engine: Any) -> None:
        """Forget the episode before, as LeRobot does where a person took over for a while.

        An engine with a thread is started once: a thread that still plans outlives its stop.
        """
        seen = self._held.get_observation()  # from here the first step is measured
        if not self._prepared:
            self._strategy.setup(self._context)
            self._prepared = True
        else:
            self._strategy._interpolator.reset()
            self._strategy._cached_obs_processed = None
            engine.reset()
        # Otherwise it would begin with a plan from where the last episode ended.
        engine.notify_observation(self._context.processors.robot_observation_processor(seen))

    def go_home(self) -> None:
        """Move the arm back to where it stood when it was connected, as LeRobot does at the end."""
        home = self._context.hardware.initial_position
        if home and not self.ended:
            self._held.begin(home)
            with self._moves(), _failing("the arm did not go back"):
                self._strategy._return_to_initial_position(self._context.hardware)

    def let_go(self) -> None:
        """Go back to where the arm stood, and disconnect it; another Ctrl-C disconnects at once."""
        hardware = self._context.hardware
        try:
            self._held.begin(hardware.initial_position)
            with _quiet():
                self._strategy.teardown(self._context)
        except KeyboardInterrupt:
            pass
        except _FAILURES as error:
            logging.getLogger("zk0d").warning("the arm was not let go cleanly: %s", _said(error))
        finally:
            with contextlib.suppress(*_FAILURES):
                if self._held.is_connected:
                    self._held.disconnect()

    @contextlib.contextmanager
    def _moves(self) -> Iterator[None]:
        """Within it, the first Ctrl-C ends the movement and the try, and the second one waits not.

        A driver that was interrupted between two bytes would leave its bus in disorder.
        """

        def end(number: int, frame: FrameType | None) -> None:
            if self.ended:
                # Who presses it twice does not want to see the arm move again.
                self._context.runtime.cfg.return_to_initial_position = False
                raise KeyboardInterrupt
            self.ended = True
            self._stop.set()

        with _handled(end, _INTERRUPT, *_OTHERS), _quiet():
            yield


@contextlib.contextmanager
def connected(plan: Plan) -> Iterator[ConnectedArm]:
    """Load the policy, then connect the arm; at the end it goes back and is let go.

    Raises
    ------
    UnavailableError
        If one of them fails.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_handled(end, *_OTHERS))
        folder = stack.enter_context(_of_group(plan.folder, plan.group))
        with _failing("the policy or the arm could not be started"), _quiet():
            # LeRobot looks below the current folder for what a policy carries of another model.
            with contextlib.chdir(folder):
                try:
                    context = build_rollout_context(_config(plan, folder), stop)
                except BaseException as error:
                    # A robot of LeRobot's disconnects when nothing refers to it any more.
                    traceback.clear_frames(error.__traceback__)
                    raise
            arm = ConnectedArm(plan, context, stop)
        stack.callback(arm.let_go)
        yield arm


def _config(plan: Plan, folder: Path) -> RolloutConfig:
    policy = PreTrainedConfig.from_pretrained(folder)
    policy.pretrained_path = folder
    policy.device = plan.device
    return RolloutConfig(
        robot=plan.robot,
        policy=policy,
        strategy=BaseStrategyConfig(),
        inference=RTCInferenceConfig() if plan.chunks_ahead else SyncInferenceConfig(),
        fps=plan.fps,
        duration=plan.seconds,
        device=plan.device,
        task=plan.task,
        rename_map=dict(plan.renamed),
        play_sounds=False,
    )


@contextlib.contextmanager
def _of_group(folder: Path, group: str) -> Iterator[Path]:
    """The policy's folder with a group's processors in place of the others."""
    if not group:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zk0bot-try-") as made:
        place = Path(made)
        own = {path.name: path for path in (folder / GROUPS_FOLDER / group).iterdir()}
        for name, path in ({each.name: each for each in folder.iterdir()} | own).items():
            (place / name).symlink_to(path)
        yield place


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Within it, these signals call the handler; only a process's main thread may say so."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it, LeRobot does not say at each tick that a goal was capped or that it is late."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Say in one sentence what a driver or LeRobot failed with."""
    try:
        yield
    except _FAILURES as error:
        raise UnavailableError(
            f"{what} ({_said(error)}); look at the arm's power, cables and cameras, and try again.",
            reason="arm_failed",
        ) from error


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
