"""The errors of NVIDIA's driver (Xids), counted over restarts of the process that counts them.

After many of them a learner's process has to end, so a count in its memory would never be seen.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zk0d.files import write_file

log = logging.getLogger("zk0d")

FILE = "xids.json"
#: Of the hardware or its link, whatever a program does: memory (48, 63, 64, 92, 94, 95), link (74),
#: a card that is gone (79), its own processor (119, 120, 143). They are shown before they happen,
#: or Prometheus would not see the first one as an increase.
HARDWARE = (48, 63, 64, 74, 79, 92, 94, 95, 119, 120, 143)
#: A driver that repeats one endlessly holds no scrape up.
MOST_AT_ONCE = 1000


class XidCounter:
    """Counts the Xids of each GPU that the driver tells this process.

    Parameters
    ----------
    folder
        Where the counts are kept; ``None`` keeps none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / FILE if folder else None
        self._counts = self._read()
        self._library: Any = None
        self._events: Any = None
        self._names: dict[Any, str] = {}

    @property
    def gpus(self) -> set[str]:
        """Those that had one."""
        return {gpu for gpu, _ in self._counts}

    def watch(self, library: Any) -> None:
        """Have the driver tell of every GPU from now on; where it cannot, none is counted."""
        try:
            events = library.nvmlEventSetCreate()
            for index in range(library.nvmlDeviceGetCount()):
                handle = library.nvmlDeviceGetHandleByIndex(index)
                library.nvmlDeviceRegisterEvents(
                    handle, library.nvmlEventTypeXidCriticalError, events
                )
                self._names[_address(handle)] = str(index)
        except library.NVMLError as error:
            log.debug("the driver tells no Xids: %s", error)
            self._library = None
            return
        self._library, self._events = library, events

    def take(self) -> None:
        """Count what the driver has told since; waits for nothing."""
        came = 0
        for gpu, xid in self._told():
            key = (gpu, xid)
            self._counts[key] = self._counts.get(key, 0) + 1
            log.warning("GPU %s: its driver reports Xid %d; journalctl -k says more", gpu, xid)
            came += 1
        if came:
            self._write()

    def counts(self, gpu: str) -> Iterator[tuple[int, int]]:
        """Each Xid of a GPU, and how often it came; those of the hardware also if never."""
        seen = {xid: count for (of, xid), count in self._counts.items() if of == gpu}
        for xid in sorted({*HARDWARE, *seen}):
            yield xid, seen.get(xid, 0)

    def _told(self) -> Iterator[tuple[str, int]]:
        library = self._library
        if library is None:
            return
        for _ in range(MOST_AT_ONCE):
            try:
                event = library.nvmlEventSetWait_v2(self._events, 0)
            except library.NVMLError:  # most often that there is none
                return
            # By what was known before: a card that is gone answers no question.
            yield self._names.get(_address(event.device), "unknown"), int(event.eventData)

    def _read(self) -> dict[tuple[str, int], int]:
        try:
            assert self._file is not None
            listed = json.loads(self._file.read_text(encoding="utf-8"))
            return {(str(gpu), int(xid)): int(count) for gpu, xid, count in listed}
        except (AssertionError, OSError, ValueError, TypeError):
            return {}

    def _write(self) -> None:
        if self._file is None:
            return
        listed = [[gpu, xid, count] for (gpu, xid), count in self._counts.items()]
        try:
            write_file(self._file, json.dumps(listed), durable=False)
        except OSError as error:  # a full disk is no reason to end
            log.error("%s: the GPU's errors cannot be kept (%s)", self._file, error.strerror)


def _address(handle: Any) -> Any:
    """What makes two handles of NVIDIA's library the same: they are pointers of ctypes."""
    return ctypes.cast(handle, ctypes.c_void_p).value if hasattr(handle, "contents") else handle
