"""Errors a client of the engine sees: QMP's error classes, and the system's texts."""

from __future__ import annotations

import os
from typing import ClassVar


class QMPError(Exception):
    """A command failed in a way the client is told of.

    desc: one sentence for people. hint: what to try, never part of desc. error_class: QMP's class name.
    """

    error_class: ClassVar[str] = "GenericError"

    def __init__(self, desc: str, hint: str | None = None) -> None:
        super().__init__(desc)
        self.desc = desc
        self.hint = hint

    def __str__(self) -> str:
        return self.desc


class GenericError(QMPError):
    """Any failure without a class of its own."""


class CommandNotFound(QMPError):
    """There is no such command, or not in this state of the session."""

    error_class = "CommandNotFound"


class DeviceNotFound(QMPError):
    """The device or node named does not exist (a few old commands only)."""

    error_class = "DeviceNotFound"


class DeviceNotActive(QMPError):
    """The job named does not exist (block-job-* commands)."""

    error_class = "DeviceNotActive"


def os_error_text(exc: OSError) -> str:
    """Return the system's text of *exc*, as QEMU appends it after a colon (strerror, no errno, no file name)."""
    if exc.errno is not None:
        return os.strerror(exc.errno)
    return exc.strerror or str(exc) or type(exc).__name__
