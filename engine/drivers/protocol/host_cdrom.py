"""host_cdrom: a CD-ROM drive of the host, whose medium comes and goes."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any, Final

from engine.drivers.protocol.file import HostDeviceDriver
from engine.errors import GenericError
from engine.graph.driver import DriverInfo, Extent, register
from engine.qapi import Struct

_EJECT, _CLOSE_TRAY, _DRIVE_STATUS, _LOCK_DOOR = 0x5309, 0x5319, 0x5326, 0x5329
_CURRENT_SLOT: Final = 0x7FFFFFFF
_DISC_OK: Final = 4


@register
class HostCdromDriver(HostDeviceDriver):
    """CD-ROM drives. Without a medium requests end with ENOMEDIUM; the length is that of the medium at hand."""

    name = "host_cdrom"
    protocol_prefixes = ("host_cdrom",)
    SpecificStats = None  # type: ignore[assignment]  # QEMU tells none of these

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        return {"filename": filename.removeprefix("host_cdrom:")}

    @property
    def length(self) -> int:
        return self._file_length() if getattr(self, "fd", -1) >= 0 else 0

    @length.setter
    def length(self, value: int) -> None:
        """The length is the medium's."""

    # -- the drive -------------------------------------------------------------------------------------------

    def is_inserted(self) -> bool:
        """Whether there is a medium, and the tray is closed."""
        try:
            return fcntl.ioctl(self.fd, _DRIVE_STATUS, _CURRENT_SLOT) == _DISC_OK
        except OSError:
            return False

    def eject(self, out: bool) -> None:
        """Open the tray, or close it. Errors: GenericError."""
        try:
            fcntl.ioctl(self.fd, _EJECT if out else _CLOSE_TRAY, 0)
        except OSError as exc:
            what = "open" if out else "close"
            raise GenericError(
                f"Could not {what} the tray of '{self.filename}': {os.strerror(exc.errno or 0)}"
            ) from exc

    def lock_medium(self, locked: bool) -> None:
        """Keep the drive's button from opening the tray, or let it. Errors: GenericError."""
        try:
            fcntl.ioctl(self.fd, _LOCK_DOOR, int(locked))
        except OSError as exc:
            what = "lock" if locked else "unlock"
            raise GenericError(
                f"Could not {what} the door of '{self.filename}': {os.strerror(exc.errno or 0)}"
            ) from exc

    def _need_medium(self) -> None:
        if not self.is_inserted():
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        self._need_medium()
        super().read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._need_medium()
        super().write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        # Drives have no such command; the caller writes zeros.
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def discard(self, offset: int, length: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return super().block_status(offset, length, want_zero=False)

    def info(self) -> DriverInfo | None:
        return None

    def specific_stats(self) -> Struct | None:
        return None
