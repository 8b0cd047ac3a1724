"""What the command line asked for, as the front ends take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.backend import Backend


@dataclass(slots=True)
class RunOptions:
    """What only `blockmon run` is told."""

    dry_run: bool = False
    """Check every line against the schema, and execute nothing."""

    update: bool = False
    """Write the answers that came into the scripts, in place of those expected."""

    keep_going: bool = False
    """Go on behind a failure."""

    step: bool = False
    """Ask before each statement."""

    speed: float = 1.0
    """How many times faster than written the pauses of a script pass."""

    trace: bool = False
    """Tell each statement on stderr."""

    json: bool = False
    """Answers, events and results as lines of JSON on stdout."""

    junit: str | None = None
    """File for a report in JUnit's XML."""

    tui: bool = False
    """Show the run on the screen."""

    allow_shell: bool = False
    """@shell may start commands."""

    variables: dict[str, str] = field(default_factory=dict)
    """Values of ${NAME}, as if @set stood in front of the first script."""


@dataclass(slots=True)
class CommonOptions:
    """Options that every way of running blockmon shares."""

    images: list[str] = field(default_factory=list)
    """Images whose whole chain is opened, read-only and shared unless `rw`."""

    rw: bool = False
    """Open the images for writing; on a remote engine, let commands change it."""

    connect: str | None = None
    """Address of the engine to talk to (see `blockmon.backend.address`); None for one inside this process."""

    read_only: bool = False
    """Refuse every command that changes something, before it is sent."""

    record: str | None = None
    """Command file to write what is done to; None for none."""

    low_bandwidth: bool = False
    """Bound what the screen sends to the terminal, for a slow link."""

    theme: str | None = None
    """A theme's name; None for the default."""

    log: str | None = None
    """File that the program's own log is written to; None for no log."""

    startup: list[tuple[str, str]] = field(default_factory=list)
    """("--object" | "--blockdev" | "--nbd-server" | "--export" | "--chardev" | "--monitor" | "--qmp" | "--hmp", text)
    in the order given, in which they take effect, as in qemu-storage-daemon."""

    add_fd: list[str] = field(default_factory=list)
    """Texts of --add-fd, which take effect before all of `startup`."""

    daemonize: bool = False
    """Go into the background once everything of `startup` stands (`blockmon serve`)."""

    prepare: Callable[[Backend], Awaitable[None]] | None = None
    """What fills a fresh back end with more than `startup` and `images` do (the demo's chain)."""

    places: dict[str, str] = field(default_factory=dict)
    """Folders that are there for this session only; a recording has the variable of that name instead."""

    pidfile: str | None = None
    """File to write the process id to once everything of `startup` stands; removed at exit."""

    run: RunOptions = field(default_factory=RunOptions)


class StartupError(Exception):
    """The program cannot start. *what* is the option (with its text) or the file at fault; `cli.main` prints
    `blockmon: WHAT: MESSAGE` and exits with status 1."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.what = what
        self.message = message
