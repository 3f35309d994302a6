"""Room on the disks that a service writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric


class DiskCollector:
    """Looks at each scrape; a folder that cannot be looked at is left out.

    Parameters
    ----------
    folders
        What each holds, and where it is; one that is not there yet counts as its parent.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)

    def describe(self) -> list[Metric]:
        """The families without values."""
        return list(self._families())

    def collect(self) -> Iterator[Metric]:
        """Bytes, as ``df`` counts them for users without privileges."""
        free, size = self._families()
        for holds, folder in self._folders.items():
            try:
                found = os.statvfs(_there(folder))
            except OSError:
                continue
            free.add_metric((holds,), found.f_bavail * found.f_frsize)
            size.add_metric((holds,), found.f_blocks * found.f_frsize)
        yield from (free, size)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "zk0d_filesystem_free_bytes", "Room on the disk under a folder.", labels=("holds",)
            ),
            GaugeMetricFamily(
                "zk0d_filesystem_size_bytes", "Size of that disk.", labels=("holds",)
            ),
        )


def _there(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
