"""The file that tells the process id to whoever started the program."""

from __future__ import annotations

import contextlib
import fcntl
import os

from blockmon.options import StartupError


class PidFile:
    """A pid file. It is locked as long as the program runs, so that no second one takes it over."""

    def __init__(self, path: str) -> None:
        """Create and lock the file; errors: StartupError."""
        # A daemon changes its folder.
        self._path = os.path.abspath(path)
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StartupError(f"--pidfile {path}", f"Could not create '{path}': {exc.strerror}") from exc
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        except OSError as exc:
            os.close(self._fd)
            raise StartupError(f"--pidfile {path}", f"Cannot lock pid file: {exc.strerror}") from exc

    def remove(self) -> None:
        """Remove the file, if it is still this one."""
        with contextlib.suppress(OSError):
            here, there = os.fstat(self._fd), os.lstat(self._path)
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                os.unlink(self._path)
        os.close(self._fd)
