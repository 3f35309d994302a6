"""What recordings cover: where episodes begin and end, how long they are, and where few are.

A pose is the state of an episode's first or last frame. What is missing is judged joint by joint,
against the range that all datasets together have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import not_written
from zk0d.learning.layout import STATE
from zk0d.learning.recordings import Recordings

#: Parts that a joint's range is cut into.
PARTS = 5
#: A part with fewer than this share of what each part would have, if all had the same, has few.
FEW_SHARE = 0.25
#: A joint whose poses lie within this share of its range in all frames says nothing of coverage.
STILL_SHARE = 0.1

Poses = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """One dataset's.

    Attributes
    ----------
    joints
        What the numbers of a state are called.
    begins, ends
        The state at each episode's first and last frame, shape ``(episodes, joints)``.
    seconds
        Of each episode, shape ``(episodes,)``.
    cameras
        The policy's names.
    spans
        The range of each joint over all frames, shape ``(joints,)``.
    """

    uri: str
    joints: tuple[str, ...]
    begins: Poses
    ends: Poses
    seconds: NDArray[np.float64]
    cameras: tuple[str, ...]
    spans: NDArray[np.float64]

    @classmethod
    def of(cls, recordings: Recordings) -> Coverage:
        """Look at recordings; a pose that is no number is that of no episode."""
        state = recordings.columns[STATE].double().numpy()
        rows = [recordings.rows(episode) for episode in recordings.episodes]
        whole = [r for r in rows if np.isfinite(state[[r.start, r.stop - 1]]).all()]
        names = recordings.robot().state.names
        finite = state[np.isfinite(state).all(axis=1)]
        width = state.shape[1]
        return cls(
            uri=recordings.uri,
            joints=names or tuple(str(number) for number in range(width)),
            begins=state[[r.start for r in whole]].reshape(len(whole), width),
            ends=state[[r.stop - 1 for r in whole]].reshape(len(whole), width),
            seconds=np.array([(r.stop - r.start) / recordings.summary.fps for r in rows]),
            cameras=tuple(sorted(recordings.summary.cameras)),
            spans=np.ptp(finite, axis=0) if len(finite) else np.zeros(width),
        )

    def sentence(self) -> str:
        """How many episodes of which length."""
        low, middle, high = np.quantile(self.seconds, (0.0, 0.5, 1.0))
        return (
            f"{self.uri}: {len(self.seconds)} episodes of {low:.1f} to {high:.1f} s, half of them"
            f" longer than {middle:.1f} s; cameras {', '.join(self.cameras)}"
        )

    def to_json(self, lacking: Sequence[Gap]) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "dataset": self.uri,
            "joints": list(self.joints),
            "begins": self.begins.tolist(),
            "ends": self.ends.tolist(),
            "seconds": self.seconds.tolist(),
            "cameras": list(self.cameras),
            "gaps": [asdict(gap) for gap in lacking],
        }


@dataclass(frozen=True)
class Gap:
    """A part of a joint's range in which few of a dataset's episodes begin or end."""

    joint: str
    what: str  #: ``begin`` or ``end``
    low: float
    high: float
    episodes: int  #: that do
    others: int  #: of the other datasets

    def sentence(self) -> str:
        """What to record next."""
        if self.episodes > 1:
            few = f"{self.episodes} episodes {self.what}"
        else:
            few = f"{self.episodes or 'no'} episode {self.what}s"
        others = f"; {self.others} of the others do" if self.others else ""
        return f"{few} with {self.joint} from {self.low:.3g} to {self.high:.3g}{others}"


def gaps(own: Coverage, everything: Sequence[Coverage]) -> list[Gap]:
    """Where a dataset has few poses: first what the others have most of.

    Parameters
    ----------
    own
        One of ``everything``, whose joints are the same.
    """
    found = []
    for what in ("begin", "end"):
        for joint in range(len(own.joints)):
            found += list(_gaps_of(joint, what, own, everything))
    return sorted(found, key=lambda gap: (-gap.others, gap.episodes))


def _gaps_of(joint: int, what: str, own: Coverage, everything: Sequence[Coverage]) -> Iterator[Gap]:
    poses = [_poses(each, what)[:, joint] for each in everything]
    together = np.concatenate(poses)
    span = max(each.spans[joint] for each in everything)
    if not len(together) or np.ptp(together) <= STILL_SHARE * span:
        return
    edges = np.linspace(together.min(), together.max(), PARTS + 1)
    mine, _ = np.histogram(_poses(own, what)[:, joint], edges)
    whole, _ = np.histogram(together, edges)
    # Between two places for an object, say, there may be nothing to record.
    usual = mine.sum() / max(1, np.count_nonzero(whole))
    for part in range(PARTS):
        others = int(whole[part] - mine[part])
        if mine[part] < FEW_SHARE * usual and (others or len(everything) == 1):
            low, high = float(edges[part]), float(edges[part + 1])
            yield Gap(own.joints[joint], what, low, high, int(mine[part]), others)


def _poses(coverage: Coverage, what: str) -> Poses:
    return coverage.begins if what == "begin" else coverage.ends


def draw(everything: Sequence[Coverage], path: Path) -> None:
    """Draw where episodes begin (circles) and end (crosses), by the two joints that differ most.

    The picture is PNG or SVG, by the path's suffix.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    # No pyplot: it keeps every figure, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from zk0d.pages import COLOURS

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    poses, lengths = figure.subplots(1, 2)
    first, second = _two(everything)
    seconds = np.concatenate([each.seconds for each in everything])
    bins = np.histogram_bin_edges(seconds, 20)
    for number, each in enumerate(everything):
        colour, name = COLOURS[number % len(COLOURS)], each.uri.rstrip("/").rpartition("/")[2]
        begins, ends = each.begins, each.ends
        poses.scatter(begins[:, first], begins[:, second], s=18, color=colour, label=name)
        poses.scatter(ends[:, first], ends[:, second], s=22, color=colour, marker="x")
        lengths.hist(each.seconds, bins=bins, color=colour, alpha=0.6, label=name)
    joints = everything[0].joints
    poses.set(xlabel=joints[first], ylabel=joints[second], title="begin (•) and end (x)")
    lengths.set(xlabel="seconds", ylabel="episodes", title="lengths")
    if len(everything) > 1:
        poses.legend(fontsize=8, frameon=False)
    for axes in (poses, lengths):
        axes.spines[["top", "right"]].set_visible(False)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    try:
        figure.savefig(path, dpi=120, metadata=metadata)
    except OSError as error:
        raise not_written(f"{path}: the picture cannot be written", error) from None


def _two(everything: Sequence[Coverage]) -> tuple[int, int]:
    """The joints in which episodes begin or end most differently, for their range; one twice if
    there is no other.
    """
    begins = np.concatenate([each.begins for each in everything])
    ends = np.concatenate([each.ends for each in everything])
    spans = np.maximum(np.max([each.spans for each in everything], axis=0), 1e-9)
    order = np.argsort(np.maximum(begins.std(axis=0), ends.std(axis=0)) / spans)[::-1].tolist()
    return order[0], order[min(1, len(order) - 1)]
