"""A FUSE export: a regular file of the host becomes the disk, for as long as the export is there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from engine.errors import GenericError, os_error_text
from engine.exports.export import Export, export_type
from engine.exports.fuse.mount import MountError, mount, unmount
from engine.exports.fuse.session import MAX_WRITE, Session
from engine.exports.options import BlockExportOptionsFuse, BlockExportType
from engine.graph.options import OnOffAuto
from engine.graph.permissions import Perm

if TYPE_CHECKING:
    from engine.exports.manager import Exports
    from engine.exports.options import BlockExportOptions
    from engine.graph.backend import BlockBackend


@export_type
class FuseExport(Export):
    """A node as a file. It counts as used by nobody: whoever has the file open loses it with the export."""

    type = BlockExportType.FUSE

    def __init__(self, exports: Exports, options: BlockExportOptions, backend: BlockBackend) -> None:
        super().__init__(exports, options, backend)
        branch = options.branch
        assert isinstance(branch, BlockExportOptionsFuse)
        self._own = branch
        self.mountpoint = os.path.abspath(branch.mountpoint)
        self._session: Session | None = None

    def start(self) -> None:
        growable = bool(self._own.growable)
        if growable or self.writable:
            # For as long as the export is there: a truncate must not fail for want of it.
            self.backend.take(self.backend.perm | Perm.RESIZE, Perm.ALL)
        self._check_mountpoint()
        mode = stat.S_IFREG | stat.S_IRUSR | (stat.S_IWUSR if self.writable else 0)
        fd, allow_other = self._mount(mode)
        self._session = Session(
            fd,
            self.backend,
            writable=self.writable,
            growable=growable and self.writable,
            allow_other=allow_other,
            ended=lambda: self.exports.engine.control.post(self._over),
        )
        try:
            self._session.start()
        except RuntimeError as exc:
            os.close(fd)
            unmount(self.mountpoint)
            raise GenericError(f"Failed to create FUSE session: {exc}") from None

    def _check_mountpoint(self) -> None:
        path = self._own.mountpoint
        for other in self.exports.all():
            if isinstance(other, FuseExport) and other.mountpoint == self.mountpoint:
                raise GenericError(f"There already is a FUSE export on '{path}'")
        try:
            info = os.stat(path)
        except OSError as exc:
            raise GenericError(f"Failed to stat '{path}': {os_error_text(exc)}") from exc
        if not stat.S_ISREG(info.st_mode):
            raise GenericError(f"'{path}' is not a regular file")

    def _mount(self, mode: int) -> tuple[int, bool]:
        """The descriptor to serve, and whether others than its owner may see the file. Errors: GenericError."""
        wanted = self._own.allow_other
        tries = {OnOffAuto.ON: (True,), OnOffAuto.OFF: (False,)}.get(wanted or OnOffAuto.AUTO, (True, False))
        error: MountError | None = None
        for allow_other in tries:
            try:
                return mount(self.mountpoint, mode, allow_other=allow_other, max_read=MAX_WRITE), allow_other
            except MountError as exc:
                error = exc
        raise GenericError(f"Failed to mount FUSE session to export: {error}")

    @property
    def in_use(self) -> bool:
        return False

    def shut_down(self) -> None:
        assert self._session is not None
        unmount(self.mountpoint)
        self._session.stop()

    def _over(self) -> None:
        """The last thread has ended: the export is to go, or somebody has unmounted the file."""
        if not self.shutting_down:
            self.shutting_down = True
        self.exports.gone(self)
