"""What the command line asked for, as the front ends take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.backend import Backend


@dataclass(slots=True)
class CommonOptions:
    """Options that every way of running blockmon shares."""

    images: list[str] = field(default_factory=list)
    """Images whose whole chain is opened, read-only and shared unless `rw`."""

    rw: bool = False
    """Open the images for writing."""

    theme: str | None = None
    """A theme's name; None for the default."""

    log: str | None = None
    """File that the program's own log is written to; None for no log."""

    startup: list[tuple[str, str]] = field(default_factory=list)
    """("--object" | "--blockdev" | "--nbd-server" | "--export" | "--chardev" | "--monitor" | "--qmp" | "--hmp", text)
    in the order given, in which they take effect, as in qemu-storage-daemon."""

    prepare: Callable[[Backend], Awaitable[None]] | None = None
    """What fills a fresh back end with more than `startup` and `images` do (the demo's chain)."""

    pidfile: str | None = None
    """File to write the process id to once everything of `startup` stands; removed at exit."""


class StartupError(Exception):
    """The program cannot start. *what* is the option (with its text) or the file at fault; `cli.main` prints
    `blockmon: WHAT: MESSAGE` and exits with status 1."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.what = what
        self.message = message
