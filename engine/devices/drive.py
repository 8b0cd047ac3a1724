"""Drives of ``-drive`` and drive_add: a named back end with options of its own, and the device that ``if=`` implies."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from engine.devices.drive_options import DriveOptions, Interface, parse_drive
from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend
from engine.graph.blockers import Op
from engine.graph.change import Transaction, append, refresh_permissions
from engine.graph.creation import GraphCreateContext, create_image
from engine.graph.driver import drivers
from engine.graph.filenames import protocol_of
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.graph.populate import copy_on_read
from engine.qapi.keyval import crumple
from engine.qapi.opts import parse_opts
from engine.throttle.backends import set_limits

if TYPE_CHECKING:
    from engine.devices.bus import Device
    from engine.engine import Engine

_DEVICES = {
    Interface.IDE: ("ide-hd", "ide-cd"),
    Interface.FLOPPY: ("floppy", "floppy"),
    Interface.VIRTIO: ("virtio-blk-pci", "virtio-blk-pci"),
}
"""The device an interface gets on a PC: for a disk, for a CD."""
_IDE_BUSES = 2
_FLOPPY_UNITS = 2


class Drives:
    """The drives of one engine. Control plane."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._drives: list[tuple[DriveOptions, BlockBackend]] = []

    # -- making --------------------------------------------------------------------------------------------------

    def parse(self, text: str) -> DriveOptions:
        """Read the text of a drive; its place is not taken yet. Errors: GenericError."""
        self._forget_gone()
        places = {(options.interface, options.bus, options.unit) for options, _ in self._drives}
        ids = {options.id for options, _ in self._drives}
        return parse_drive(text, Interface.IDE, lambda *place: place in places, ids.__contains__)

    def add(self, options: DriveOptions) -> BlockBackend:
        """Make the drive. Errors: GenericError, nothing made then."""
        engine, graph = self._engine, self._engine.graph
        node = self._open(options)
        try:
            backend = engine.machine.add_backend(options.id, node)
        finally:
            if node is not None:
                graph.unpin(node)
        try:
            self._configure(backend, options)
        except BaseException:
            graph.remove_backend(backend)
            raise
        self._drives.append((options, backend))
        return backend

    def _configure(self, backend: BlockBackend, options: DriveOptions) -> None:
        backend.write_cache = options.write_cache
        backend.on_read_error = options.rerror or "report"
        backend.on_write_error = options.werror or "enospc"
        state = backend.root_state
        state.read_only, state.detect_zeroes = options.read_only, options.detect_zeroes
        state.direct, state.no_flush = options.direct, options.no_flush
        if backend.root is not None:
            # No device uses it yet, but somebody will want to read.
            backend.take(Perm.CONSISTENT_READ, Perm.ALL)
            backend.stats.account_invalid = options.account_invalid
            backend.stats.account_failed = options.account_failed
            for seconds in options.intervals:
                backend.stats.add_interval(seconds)
        groups = self._engine.objects.throttle_groups
        set_limits(groups, backend, options.throttle, options.throttle_group, options.id)

    def attach_device(self, options: DriveOptions) -> Device | None:
        """Add the guest device that the drive's interface implies. Errors: GenericError."""
        if options.interface is Interface.NONE:
            return None
        models = _DEVICES.get(options.interface)
        properties: dict[str, Any] = {"drive": options.id}
        place = {"bus": f"ide.{options.bus}", "unit": options.unit} if options.interface is Interface.IDE else {}
        supported = models is not None
        if options.interface is Interface.IDE:
            supported = options.bus < _IDE_BUSES
        elif options.interface is Interface.FLOPPY:
            supported = options.bus == 0 and options.unit < _FLOPPY_UNITS
            place = {"unit": options.unit}
        if models is None or not supported:
            name = options.interface.name.lower()
            raise GenericError(f"machine type does not support if={name},bus={options.bus},unit={options.unit}")
        return self._engine.machine.add({"driver": models[options.cdrom], **properties, **place})

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(self, options: DriveOptions) -> Node | None:
        """The drive's node, pinned; None without a medium. Errors: GenericError."""
        graph = self._engine.graph
        if options.filename is None and not options.node:
            return None
        given = dict(options.node)
        if options.snapshot:
            # The image becomes the backing file of a temporary overlay, hence is not written to.
            given["read-only"], given["auto-read-only"] = True, False
        given = _with_aio(given, options)
        node = open_node(graph, given, filename=options.filename)
        try:
            if options.snapshot:
                node = self._cover(node, self._temporary_overlay(node, options))
            node.detect_zeroes = options.detect_zeroes
            if options.copy_on_read:
                copy_on_read(node)
        except BaseException:
            graph.unpin(node)
            raise
        return node

    def _cover(self, base: Node, overlay: Node) -> Node:
        """Put *overlay* on top of *base*; the pin of base goes over to it."""
        graph = self._engine.graph
        try:
            with Transaction() as txn:
                append(txn, overlay, base)
                refresh_permissions(txn, [overlay])
        except BaseException:
            graph.unpin(overlay)
            raise
        graph.unpin(base)
        return overlay

    def _temporary_overlay(self, base: Node, options: DriveOptions) -> Node:
        graph = self._engine.graph
        folder = os.environ.get("TMPDIR") or "/var/tmp"
        try:
            fd, path = tempfile.mkstemp(prefix="vl.", dir=folder)
        except OSError as exc:
            raise GenericError(f"Could not make a temporary file in '{folder}': {exc.strerror}") from exc
        os.close(fd)
        try:
            create_image(GraphCreateContext(graph, self._engine.control.call), path, "qcow2", base.length)
            return open_node(
                graph,
                {
                    "driver": "qcow2",
                    "file": {"driver": "file", "filename": path},
                    "backing": None,
                    "read-only": options.read_only,
                    "discard": "unmap" if base.discard_unmap else "ignore",
                    # Nobody needs the overlay after a crash.
                    "cache": {"direct": False, "no-flush": True},
                },
            )
        finally:
            os.unlink(path)

    # -- removing ------------------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """drive_del: take the medium away at once, and the drive, though its device may stay. Errors: QMPError."""
        graph = self._engine.graph
        backend = graph.find_backend(name)
        if backend is None:
            raise DeviceNotFound(f"Device '{name}' not found")
        if not any(other is backend for _, other in self._drives):
            raise GenericError("Deleting device added with blockdev-add is not supported")
        if backend.root is not None:
            node = backend.root.child
            node.blockers.check(Op.DRIVE_DEL, node.device_or_node_name)
            graph.eject(backend)
        # The id stays taken as long as the device lives.
        backend.name = ""
        if backend.device is None:
            graph.remove_backend(backend)
        else:
            # Requests that fail from now on must not stop the guest.
            backend.on_read_error = backend.on_write_error = "report"
            graph.changed()

    def discard(self, backend: BlockBackend) -> None:
        """Take back a drive that was just made."""
        self._drives = [(options, other) for options, other in self._drives if other is not backend]
        self._engine.graph.remove_backend(backend)

    def _forget_gone(self) -> None:
        """Drives that went with their device."""
        present = self._engine.graph.backends
        self._drives = [(options, backend) for options, backend in self._drives if backend in present]


def format_list(text: str) -> str | None:
    """What ``format=help`` prints; None when *text* does not ask for it."""
    if dict(parse_opts(text)).get("format") not in ("help", "?"):
        return None
    names = " ".join(sorted(drivers))
    return f"Supported formats: {names}\nSupported formats (read-only): {names}\n"


def add_node(engine: Engine, text: str) -> None:
    """``drive_add -n``: a node instead of a drive. Errors: GenericError."""
    options = crumple(dict(parse_opts(text)))
    if not options.get("node-name"):
        raise GenericError("'node-name' needs to be specified")
    node = open_node(engine.graph, options)
    node.monitor_owned = True
    engine.graph.unpin(node)


def _with_aio(given: dict[str, Any], options: DriveOptions) -> dict[str, Any]:
    """aio= reaches the protocol node, where that knows it."""
    if options.aio is None:
        return given
    cls = drivers.get(str(given.get("driver")))
    if cls is not None and cls.is_protocol:
        if any(member.name == "aio" for member in cls.Options.qapi_members()):
            given.setdefault("aio", options.aio)
        return given
    if cls is not None and not any(member.name == "file" for member in cls.Options.qapi_members()):
        return given
    file = given.get("file", {})
    if not isinstance(file, dict) or not _is_plain(options.filename):
        return given
    below = drivers.get(str(file.get("driver", "file")))
    if below is not None and any(member.name == "aio" for member in below.Options.qapi_members()):
        given["file"] = {"aio": options.aio, **file}
    return given


def _is_plain(filename: str | None) -> bool:
    """Whether a file name is a path, without a protocol in front that may be one of another driver."""
    return filename is None or (not filename.startswith("json:") and protocol_of(filename) is None)
