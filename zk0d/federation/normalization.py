"""Which statistics each node normalizes with: merged once, kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from zk0d.config.run import NormalizeBy
from zk0d.errors import DataError
from zk0d.federation.messages import QueryReply
from zk0d.learning.robot import group_of
from zk0d.learning.statistics import RunStatistics, Statistics, merge, merge_groups
from zk0d.record.events import AnyEvent, StatisticsMerged
from zk0d.record.journal import STATISTICS, Journal


class Normalization:
    """The statistics of one run, merged before its first round.

    A node that comes later and is the first of its group adds the group. What is there stays as it
    is.

    Parameters
    ----------
    record
        Takes each event of the run.
    """

    def __init__(
        self, by: NormalizeBy, journal: Journal, record: Callable[[AnyEvent], object]
    ) -> None:
        self._by = by
        self._journal = journal
        self._record = record
        self._committed: RunStatistics | None = None

    @property
    def statistics(self) -> RunStatistics:
        """Those of all nodes, and of each group."""
        assert self._committed is not None
        return self._committed

    def begin(self, members: Mapping[str, QueryReply]) -> None:
        """Merge what the first nodes shared, by name.

        Raises
        ------
        Zk0dError
            If there is nothing to merge, or the sets do not fit each other.
        """
        shared: dict[str, list[Statistics]] = {}
        for name, reply in members.items():
            if reply.statistics is not None:
                shared.setdefault(self._group(name, reply), []).append(reply.statistics)
        self._keep(merge_groups(self._by, shared))

    def restore(self, committed: str, groups: Collection[str]) -> bool:
        """Take up what an interrupted run committed; whether its file still holds that."""
        text = (self._journal.folder / STATISTICS).read_text(encoding="utf-8")
        # A group whose event was not written yet never was.
        self._committed = RunStatistics.model_validate_json(text).only(groups)
        return self.statistics.sha256 == committed

    def of(self, name: str, reply: QueryReply) -> Statistics:
        """What a node normalizes with."""
        group = self._group(name, reply)
        if reply.statistics is not None and group not in {"", *self.statistics.groups}:
            self._keep(self.statistics.with_group(group, reply.statistics))
        return self.statistics.of(group)

    def check(self, reply: QueryReply) -> None:
        """Refuse a node that does not share what it should normalize with.

        Raises
        ------
        Zk0dError
            With reason ``no_statistics``, or ``statistics_mismatch`` for those of a late node that
            are not of this policy: every release would have to hold them.
        """
        if self._by != "cohort" and reply.statistics is None:
            raise DataError(
                f"node {reply.name}: it does not share its statistics, by which this run"
                f" normalizes (normalize-by={self._by}); set share-statistics on the node.",
                reason="no_statistics",
            )
        if self._by != "cohort" and reply.statistics is not None and self._committed is not None:
            merge((self._committed, reply.statistics))

    def _group(self, name: str, reply: QueryReply) -> str:
        return group_of(self._by, name, reply.robot.robot_type if reply.robot else "")

    def _keep(self, statistics: RunStatistics) -> None:
        """Write them, then their event: what the event does not name does not count."""
        told = {"by", "groups"} if statistics.groups else set()
        content = statistics.model_dump(
            mode="json", include={"features", "nodes"} | told, exclude_none=True
        )
        self._journal.write_json(STATISTICS, content)
        self._committed = statistics
        self._record(
            StatisticsMerged(
                nodes=statistics.nodes,
                sha256=statistics.sha256,
                groups=tuple(sorted(statistics.groups)),
            )
        )
