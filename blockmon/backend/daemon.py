"""Going into the background, as qemu-storage-daemon's --daemonize does it.

The parent stays until the child has everything set up, so that whoever started the program may connect as soon as it
has ended, and sees what goes wrong: until then the child has the parent's standard streams.
"""

from __future__ import annotations

import os
import signal

_UMASK = 0o027
"""What a daemon makes is not for everybody, as in QEMU."""


class Daemon:
    """The child's side. ready() lets the parent go."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let go of the terminal and the folder, and tell the parent that all is well."""
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        if null > 2:
            os.close(null)
        os.write(self._pipe, b"\0")
        os.close(self._pipe)


def daemonize() -> Daemon | None:
    """Fork; call it before any thread is there. None: this is the child's parent no more, the child has failed.

    The parent of a child that is ready does not return; it ends with status 0.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        told = os.read(reading, 1)
        os.close(reading)
        if told:
            os._exit(0)
        return None
    os.close(reading)
    # A session of its own, and not as its leader: no terminal can become its own any more.
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(_UMASK)
    for number in (signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    return Daemon(writing)
