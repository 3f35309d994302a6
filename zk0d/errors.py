"""The errors a user can meet, and the exit code that each of them ends a process with.

A mistake of the user is an :class:`Zk0dError`: one sentence that says what is wrong, where, and
what to do. Everything else that escapes is a bug of ours (exit code 70).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from enum import IntEnum

#: A disk that is full or read-only.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: One that this process may not write to.
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_ERRNO = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)


class ExitCode(IntEnum):
    """Exit codes of every zk0d program (sysexits.h numbers where one fits).

    Flower ends every error with status 1, so a unit's ``RestartPreventExitStatus=`` needs these.
    """

    OK = 0
    USAGE = 64  #: the command line is wrong
    UNAVAILABLE = 69  #: something needed is missing (file, dataset, port, hub)
    BUG = 70  #: a bug of ours
    TRY_AGAIN = 75  #: a place that cannot be written, or something passing (coordinator away)
    CONFIG = 78  #: a settings file or value is wrong
    CHILD = 81  #: a supervised process kept dying


class Zk0dError(Exception):
    """A mistake or condition that the reader of the message can mend.

    Parameters
    ----------
    message
        One sentence: what is wrong, where (dotted path, file or node), what to do.
    reason
        A short machine-readable name, stable over versions (``data_error``); it travels to the
        coordinator, where the sentence's paths do not.
    """

    exit_code: ExitCode = ExitCode.UNAVAILABLE
    default_reason: str = "error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason

    @property
    def message(self) -> str:
        return str(self.args[0])


class UsageError(Zk0dError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE
    default_reason = "usage"


class ConfigError(Zk0dError):
    """A settings file, key or value is wrong."""

    exit_code = ExitCode.CONFIG
    default_reason = "config_error"


class UnavailableError(Zk0dError):
    """Something that is needed is not there."""

    default_reason = "unavailable"


class DataError(Zk0dError):
    """A dataset cannot be used: missing, broken, or of another shape than the policy's."""

    default_reason = "data_error"


class TryAgainError(Zk0dError):
    """A passing condition: nothing has to be changed, only tried again."""

    exit_code = ExitCode.TRY_AGAIN
    default_reason = "try_again"


class ChildError(Zk0dError):
    """A supervised process died and stayed dead."""

    exit_code = ExitCode.CHILD
    default_reason = "child_died"


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those while which it was raised: a library's own often hides the first."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def disk_trouble(error: BaseException) -> str:
    """What a disk said that was full or read-only; empty if none was the cause."""
    return _said(error, _DISK_FULL)


def no_permission(error: BaseException) -> str:
    """What the system said if this process lacked a right, with the file; empty if it did not."""
    return _said(error, _FORBIDDEN)


def not_written(
    what: str, error: BaseException, otherwise: str = "", more: str = ""
) -> TryAgainError:
    """The refusal of a place that cannot be written.

    Parameters
    ----------
    what
        The place, and what cannot be written there.
    otherwise
        What else helps than a right or free space, such as ``" or name another folder"``.
    more
        A sentence that follows.

    Returns
    -------
    With reason ``forbidden`` if this process lacks the right, else with ``disk_full``.
    """
    if said := no_permission(error):
        do, reason = f"give user {os.geteuid()} the right to write there", "forbidden"
    else:
        said = disk_trouble(error) or getattr(error, "strerror", None) or str(error)
        do, reason = "free space there", "disk_full"
    return TryAgainError(f"{what} ({said}); {do}{otherwise}.{more}", reason=reason)


def _said(error: BaseException, numbers: tuple[int, ...]) -> str:
    for each in with_causes(error):
        # pyarrow, shutil and what is written in Rust say it in their message only.
        told = _ERRNO.search(str(each))
        said = int(told[1] or told[2]) if told else 0
        number = (each.errno if isinstance(each, OSError) else 0) or said
        if number in numbers:
            where = getattr(each, "filename", None)
            return os.strerror(number) + (f": {where}" if where else "")
    return ""
