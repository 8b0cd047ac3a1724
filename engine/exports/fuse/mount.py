"""Mounting a file of the host: by the system call as root, else by the set-uid helper fusermount3 (fuse3)."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
from typing import Final

_NOSUID, _NODEV, _DETACH = 2, 4, 2
"""MS_NOSUID, MS_NODEV, MNT_DETACH."""
_HELPER: Final = "fusermount3"
_TIMEOUT: Final = 30.0


class MountError(Exception):
    """It could not be mounted; the text says why."""


def mount(path: str, mode: int, *, allow_other: bool, max_read: int) -> int:
    """Mount over the regular file *path*; returns the descriptor to serve. mode: st_mode. Errors: MountError."""
    # The kernel checks who may do what, by the mode and owner that are served.
    options = f"max_read={max_read},default_permissions{',allow_other' if allow_other else ''}"
    if os.geteuid() == 0:
        return _mount_as_root(path, mode, options)
    return _mount_by_helper(path, options)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount_as_root(path: str, mode: int, options: str) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(f"/dev/fuse: {exc.strerror}") from exc
    data = f"fd={fd},rootmode={mode:o},user_id={os.getuid()},group_id={os.getgid()},{options}"
    result = _libc().mount(b"/dev/fuse", os.fsencode(path), b"fuse", ctypes.c_ulong(_NOSUID | _NODEV), data.encode())
    if result != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise MountError(os.strerror(code))
    return fd


def _mount_by_helper(path: str, options: str) -> int:
    helper = shutil.which(_HELPER)
    if helper is None:
        raise MountError(f"'{_HELPER}' is needed where one is not root, and is not installed (Debian's fuse3)")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                [helper, "-o", options, "--", path],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise MountError(f"{_HELPER}: {exc}") from exc
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise MountError(lines[-1] if lines else f"{_HELPER} failed")
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i", data[:4])
                    os.set_inheritable(fds[0], False)
                    return fds[0]
    raise MountError(f"{_HELPER} gave no descriptor")


def unmount(path: str) -> None:
    """Take the mount away, even while somebody has the file open."""
    if os.geteuid() == 0:
        while _libc().umount2(os.fsencode(path), _DETACH) != 0 and ctypes.get_errno() == errno.EINTR:
            pass
        return
    helper = shutil.which(_HELPER)
    if helper is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [helper, "-u", "-z", "-q", "--", path], check=False, timeout=_TIMEOUT, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
