"""The recordings that this node trains on: opened once, and again when they changed."""

from __future__ import annotations

import hashlib
import logging

from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import ClientSettings
from zk0d.errors import ConfigError, Zk0dError
from zk0d.learning.joined import JoinedRecordings, open_all
from zk0d.learning.layout import metadata_hash
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.spec import RecordingsSummary

log = logging.getLogger("zk0d")


class LentRecordings:
    """A node's own datasets as one, and where it accepts that, those that a run names.

    Recordings are named by their addresses, the node's own by all of theirs.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self.own = ", ".join(each.uri for each in settings.lent)
        self._open: dict[str, Recordings] = {}
        self._hashes: dict[str, str] = {}

    def named(self, from_run: str) -> str:
        """The recordings to use: the node's own, or the run's where this node accepts that.

        Raises
        ------
        ConfigError
            If it does not accept that, or has none.
        """
        if from_run and self._settings.learner.accept_run_dataset:
            return from_run
        if from_run:
            raise ConfigError(
                "the run names a dataset, but nodes train on their own; leave dataset-uri out of"
                " the run's settings.",
                reason="run_dataset_refused",
            )
        if not self.own:
            raise ConfigError("this node has no dataset-uri in its settings.", reason="no_dataset")
        return self.own

    def at(self, name: str) -> Recordings:
        """Those of this name; opened the first time.

        Raises
        ------
        DataError, UnavailableError
            If they cannot be opened, or do not fit each other.
        """
        if name not in self._open:
            found = self._hash(name)
            self._open[name] = self._opened(name)
            self._hashes[name] = found
        return self._open[name]

    def hash_of(self, name: str) -> str:
        """SHA-256 of the metadata of what is open, and of which part is lent."""
        return self._hashes.get(name, name)

    def keep(self, name: str, before: Recordings) -> None:
        """Use those of before until they change again."""
        self._open[name] = before

    def look_for_more(self, name: str) -> None:
        """Open recordings again that changed since; those of before stay if that fails."""
        if name not in self._open:
            return
        try:
            found = self._hash(name)
            if found == self._hashes[name]:
                return
            opened = self._opened(name)
        except Zk0dError as error:  # somebody may be recording just now
            log.warning("the recordings changed, the ones of before are used: %s", error.message)
            return
        before = len(self._open[name].episodes)
        log.info("%s: %d episodes now, %d before", name, len(opened.episodes), before)
        self._open[name], self._hashes[name] = opened, found

    def summaries(self) -> dict[str, RecordingsSummary]:
        """Each dataset's, by the node's name: a path or a hub's name is nobody else's business."""
        name, found = self._settings.name, {}
        for key, each in dict(self._open).items():  # the task's thread opens some meanwhile
            if key != self.own:
                found["of-the-run"] = each.summary
            elif isinstance(each, JoinedRecordings):
                for number, part in enumerate(each.parts, 1):
                    found[f"{name}-{number}" if len(each.parts) > 1 else name] = part.summary
            else:
                found[name] = each.summary
        return found

    def _datasets(self, name: str) -> tuple[DatasetSettings, ...]:
        return self._settings.lent if name == self.own else (DatasetSettings(uri=name),)

    def _opened(self, name: str) -> Recordings:
        return open_all(
            self._datasets(name),
            lambda each: open_recordings(each.uri, cameras=self._settings.cameras_of(each)),
        )

    def _hash(self, name: str) -> str:
        datasets = self._datasets(name)
        if len(datasets) == 1 and datasets[0].is_plain:
            return metadata_hash(datasets[0].uri)
        digest = hashlib.sha256()
        for each in datasets:
            digest.update(f"{metadata_hash(each.uri)} {each.model_dump_json()}\n".encode())
        return digest.hexdigest()
