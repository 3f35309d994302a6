"""What a learner has of a run, on disk: one that died or was restarted resumes from there.

One file. Inside a round it holds the step that the round has reached, after it the answer and what
stays between rounds. It is written as a whole, so there is an old one or a new one. It is of use
for the run and policy that it is of, and a step or an answer only for the very same task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from zk0d.config.base import Settings
from zk0d.errors import no_permission
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.streams import CHUNK_BYTES
from zk0d.federation.update import Manifest, Payload
from zk0d.files import make_folder, whole_file
from zk0d.learning.pace import Paced
from zk0d.learning.reached import Counts, Reached
from zk0d.record.events import HeldOut

if TYPE_CHECKING:
    from zk0d.learner.contributor import Prepared

log = logging.getLogger("zk0d")

NAME = "state.safetensors"
#: Seconds of a round between two steps that are kept, and the share of its time that goes to that.
#: Of SmolVLA a file has 2 GB, which wears a disk: a disk that writes 1 GB/s gets one in 200 s.
EVERY_SECONDS, MOST_SHARE = 60.0, 0.01
#: A disk that is slower than this is not waited for: a service's watchdog waits no longer for a
#: step than three times that.
MOST_SECONDS = 60.0
#: Written and waited for at once, so that a slow disk shows.
SYNC_BYTES = 128 * 2**20

_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}


class _Step(Settings):
    """What a :class:`Reached` has besides tensors."""

    counts: str
    sampler: str
    pace: str

    @classmethod
    def of(cls, reached: Reached) -> _Step:
        # Python's JSON keeps each bit of a float, and infinity.
        paced = asdict(reached.pace) if reached.pace else None
        return cls(
            counts=json.dumps(asdict(reached.counts)),
            sampler=reached.sampler,
            pace=json.dumps(paced),
        )

    def reached(self, tensors: Mapping[str, torch.Tensor]) -> Reached:
        paced = json.loads(self.pace)
        return Reached(
            Counts(**json.loads(self.counts)),
            self.sampler,
            Paced(**paced) if paced else None,
            tensors,
        )


class _Label(Settings):
    """The file's header."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    format: Literal[1] = 1
    run: str
    round: int
    policy: str  #: hash of its spec
    task: str  #: what the step or the answer is of
    dataset: str  #: hash of its address
    held_out: tuple[int, ...]  #: episodes
    step_time_of: tuple[str, int] | None
    step_seconds: float | None
    held: Manifest | None
    variates: dict[int, Manifest]
    #: On held-out episodes; in older files loss and number of frames.
    evaluated: HeldOut | tuple[float | None, int] | None = None
    step: _Step | None = None
    answer: TrainReply | None = None
    update: tuple[Manifest, ...] = ()


class ParkedState:
    """The file.

    Parameters
    ----------
    folder
        The learner's own; ``None`` to keep nothing.
    every, share
        Seconds between two steps that are kept, and the share of the time that it may take.
    clock
        Replaced in tests.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        every: float = EVERY_SECONDS,
        share: float = MOST_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder / NAME if folder else None
        self._every, self._share, self._clock = every, share, clock
        self._took = 0.0  #: the newest file
        self._failed = ""
        self._left: Callable[[], None] | None = None
        self._recalled = False  #: whether memory has what the file has between rounds
        self._label = self._read_label()

    @property
    def held(self) -> str:
        """Manifest hash of the weights that :meth:`begin` will give back; empty if none."""
        label = self._label
        return label.held.sha256 if label and label.held and not self._recalled else ""

    def held_out(self, uri: str, count: int, episodes: Collection[int]) -> tuple[int, ...]:
        """The episodes that a process before this one kept out of training.

        Parameters
        ----------
        uri, count, episodes
            The recordings now, how many to keep out, and all that there are. If these are others,
            the result is empty.
        """
        label = self._label
        if label is None or self._recalled or label.dataset != _hashed(uri):
            return ()
        fits = len(label.held_out) == count and set(label.held_out) <= set(episodes)
        return label.held_out if fits else ()

    def begin(self, task: Train, prepared: Prepared, key: str) -> ParkedRound:
        """A round begins: give ``prepared`` what it had, and find what there is of this task.

        Parameters
        ----------
        key
            Names the task: all that its update depends on.
        """
        self._left = None
        parked = ParkedRound(self, task, prepared, key)
        label = self._label
        if label is None:
            self._recalled = True
            return parked
        if (label.run, label.policy) != (task.run, _policy(task)):
            self._drop()
            return parked
        if self._recalled and label.task != key:
            return parked
        try:
            with safe_open(self._here, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not self._recalled:
                _recall(label, tensors, prepared)
            if label.task == key:
                parked.find(label, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            log.warning("%s: cannot be read (%s); it is not used.", self._path, error)
            self._drop()
        self._recalled = True
        return parked

    def settle(self) -> None:
        """Write what the last round has left, once nobody waits for the learner."""
        left, self._left = self._left, None
        if left is not None:
            left()

    def settle_with(self, left: Callable[[], None]) -> None:
        """Have :meth:`settle` do this."""
        if self._path is not None:
            self._left = left

    @property
    def pause(self) -> float:
        """Seconds from one step that is kept to the next."""
        return max(self._every, self._took / self._share) if self._path else float("inf")

    @property
    def now(self) -> float:
        """By its clock."""
        return self._clock()

    def write(self, label: _Label, content: Mapping[str, torch.Tensor | Payload]) -> None:
        """Write the file; if that fails the old one stays, and there is a line in the log."""
        if self._path is None:
            return
        began = self._clock()
        try:
            make_folder(self._path.parent)
            self._check_room(content)
            with whole_file(self._path, mode=0o600) as draft:
                self._fill(draft, label, content, began)
        except OSError as error:
            said = no_permission(error) or error.strerror or str(error)
            if said != self._failed:  # it is tried again and again
                log.warning(
                    "%s: cannot be written (%s); training continues, and a restart costs more.",
                    self._path,
                    said,
                )
            self._failed = said
        else:
            self._failed, self._label = "", label
        finally:
            self._took = self._clock() - began

    def _check_room(self, content: Mapping[str, torch.Tensor | Payload]) -> None:
        needs = sum(map(_length, content.values()))
        if disk_usage(self._here.parent).free < 2 * needs:
            raise OSError("less than twice its size is free there")

    def _fill(
        self,
        draft: Path,
        label: _Label,
        content: Mapping[str, torch.Tensor | Payload],
        began: float,
    ) -> None:
        """A safetensors file, tensor by tensor: a copy of all of them has no room in memory."""
        header: dict[str, Any] = {"__metadata__": {"label": label.model_dump_json()}}
        # Who maps the file needs floats where floats may lie.
        ordered = sorted(content.items(), key=lambda item: -_width(item[1]))
        at = 0
        for name, each in ordered:
            end = at + _length(each)
            dtype = "U8" if isinstance(each, Payload) else _DTYPES[each.dtype]
            shape = [end - at] if isinstance(each, Payload) else list(each.shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with draft.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            waiting = 0
            for _, each in ordered:
                for piece in _bytes(each):
                    file.write(piece)
                    waiting += len(piece)
                    if waiting >= SYNC_BYTES:
                        file.flush()
                        os.fdatasync(file.fileno())
                        waiting = 0
                    if self._clock() - began > MOST_SECONDS:
                        raise OSError(f"the disk takes more than {MOST_SECONDS:.0f} s for it")

    @property
    def _here(self) -> Path:
        assert self._path is not None
        return self._path

    def _read_label(self) -> _Label | None:
        if self._path is None:
            return None
        try:
            if not self._path.exists():
                return None
            with safe_open(self._path, "pt") as file:
                return _Label.model_validate_json(file.metadata()["label"])
        except (OSError, SafetensorError, ValidationError, KeyError, TypeError) as error:
            log.warning("%s: cannot be read (%s); it is not used.", self._path, error)
            return None

    def _drop(self) -> None:
        """It is of no use any more."""
        self._label, self._recalled = None, True
        try:
            self._here.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s).", self._path, error.strerror)


class ParkedRound:
    """One round's part; it keeps the round's steps.

    Attributes
    ----------
    evaluated
        What a process before this one found of the round's first weights, on held-out episodes.
    answer
        The whole of its answer, if the round was over.
    """

    evaluated: HeldOut | None = None
    answer: tuple[TrainReply, Payload] | None = None

    def __init__(self, state: ParkedState, task: Train, prepared: Prepared, key: str) -> None:
        self._state, self._task, self._prepared, self._key = state, task, prepared, key
        self._reached: Reached | None = None
        self._due = state.now + state.pause

    def find(self, label: _Label, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what the file has of this very task."""
        if isinstance(label.evaluated, tuple):
            loss, frames = label.evaluated
            self.evaluated = HeldOut(loss=loss, frames=frames)
        elif label.evaluated is not None:
            self.evaluated = label.evaluated
        if label.step is not None:
            self._reached = label.step.reached(_under("step", tensors))
            done = self._reached.counts.step
            log.info("round %d resumes at step %d", self._task.round, done)
        if label.answer is not None:
            update, *beside = (_payload(manifest, tensors) for manifest in label.update)
            self.answer = label.answer, update.with_beside(*beside)
            log.info("round %d is over here; its answer is sent again", self._task.round)

    @property
    def counts(self) -> Counts:
        """Of the step to go on from."""
        return self._reached.counts if self._reached is not None else Counts()

    def take_reached(self) -> Reached | None:
        """The step to go on from; given once, because it is large."""
        reached, self._reached = self._reached, None
        return reached

    @property
    def is_due(self) -> bool:
        return self._state.now >= self._due

    def keep(self, reached: Reached) -> None:
        prepared = self._prepared
        _, _, arrays = prepared.residual.kept()
        content: dict[str, torch.Tensor | Payload] = {
            f"residual/{name}": torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith("before/")
        }
        content |= {f"step/{name}": tensor for name, tensor in reached.tensors.items()}
        self._write(content, evaluated=self.evaluated, step=_Step.of(reached))
        self._due = self._state.now + self._state.pause

    def over(self, reply: TrainReply, update: Payload) -> None:
        """Keep the answer and what stays, when :meth:`ParkedState.settle` is called."""
        self._state.settle_with(lambda: self._keep_answer(reply, update))

    def _keep_answer(self, reply: TrainReply, update: Payload) -> None:
        prepared = self._prepared
        _, _, arrays = prepared.residual.kept()
        content: dict[str, torch.Tensor | Payload] = {
            f"residual/{name}": torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith("after/")
        }
        content |= {f"moments/{n}": tensor for n, tensor in prepared.moments.now().items()}
        payloads = (update, *update.beside)
        content |= {_place(each.manifest): each for each in payloads}
        manifests = tuple(each.manifest for each in payloads)
        self._write(content, answer=reply, update=manifests)

    def _write(self, content: dict[str, torch.Tensor | Payload], **found: Any) -> None:
        prepared = self._prepared
        held, variates = prepared.held.kept(), prepared.variates.kept()
        for payload in (held, *variates.values()):
            if payload is not None:
                content[_place(payload.manifest)] = payload
        of, seconds = prepared.step_time.kept()
        label = _Label(
            run=self._task.run,
            round=self._task.round,
            policy=_policy(self._task),
            task=self._key,
            dataset=_hashed(prepared.key[1]),
            held_out=tuple(prepared.data.held_out_episodes),
            step_time_of=of,
            step_seconds=seconds,
            held=held.manifest if held is not None else None,
            variates={number: each.manifest for number, each in variates.items()},
            **found,
        )
        self._state.write(label, content)


def task_key(task: Train, payload: Payload, *own: object) -> str:
    """Names a task by all that its update depends on.

    Parameters
    ----------
    own
        What of this machine it depends on.
    """
    # How long there is for it, and how its weights come, is no part of it.
    said = task.model_dump_json(exclude={"deadline_seconds", "hold", "difference_to"})
    mean = payload.companion("variates")
    text = json.dumps([said, mean.manifest.sha256 if mean else "", *map(str, own)])
    return _hashed(text)


def _policy(task: Train) -> str:
    return _hashed(task.spec.model_dump_json())


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _recall(label: _Label, tensors: Mapping[str, torch.Tensor], prepared: Prepared) -> None:
    """Give a new process what the one before had, all of it or nothing."""
    held = _payload(label.held, tensors) if label.held else None
    variates = {number: _payload(each, tensors) for number, each in label.variates.items()}
    moments = {f"after/{name}": each for name, each in _under("moments", tensors).items()}
    # The file is gone before they are.
    residual = {n: each.numpy().copy() for n, each in _under("residual", tensors).items()}
    prepared.moments.restore(label.run, label.round, moments)
    prepared.residual.restore(label.run, label.round, residual)
    prepared.variates.restore(label.run, variates)
    prepared.held.restore(held)
    prepared.step_time.restore(label.step_time_of, label.step_seconds)


def _under(what: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{what}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{what}/")
    }


def _place(manifest: Manifest) -> str:
    """A payload's name; one that counts twice lies there once."""
    return f"payload/{manifest.sha256}"


def _payload(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> Payload:
    data = memoryview(tensors[_place(manifest)].numpy())
    chunks = [bytes(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    return Payload(manifest, chunks)


def _width(each: torch.Tensor | Payload) -> int:
    return 1 if isinstance(each, Payload) else each.element_size()


def _length(each: torch.Tensor | Payload) -> int:
    return each.manifest.size if isinstance(each, Payload) else each.nbytes


def _bytes(each: torch.Tensor | Payload) -> Iterator[bytes | memoryview]:
    if isinstance(each, Payload):
        yield from each.stream()
    elif each.nbytes:
        flat = each.detach().cpu().contiguous().reshape(-1)
        data = memoryview(flat.view(torch.uint8).numpy())
        for at in range(0, len(data), SYNC_BYTES):
            yield data[at : at + SYNC_BYTES]
