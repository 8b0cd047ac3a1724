"""The options of ``-drive`` and drive_add: renames, cache modes, addresses, and which of them belong to the drive.

What is left over are options of the block node. Order of the checks and texts are those of QEMU 7.2's drive_new() and
blockdev_init().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from engine.errors import GenericError
from engine.graph.graph import id_wellformed
from engine.graph.options import CACHE_MODES
from engine.qapi import scalars
from engine.qapi.keyval import crumple
from engine.qapi.opts import option_bool, option_number, parse_opts
from engine.throttle.limits import Kind, ThrottleConfig

ID_HINT: Final = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
_RENAMES: Final = {
    "iops": "throttling.iops-total",
    "iops_rd": "throttling.iops-read",
    "iops_wr": "throttling.iops-write",
    "bps": "throttling.bps-total",
    "bps_rd": "throttling.bps-read",
    "bps_wr": "throttling.bps-write",
    "iops_max": "throttling.iops-total-max",
    "iops_rd_max": "throttling.iops-read-max",
    "iops_wr_max": "throttling.iops-write-max",
    "bps_max": "throttling.bps-total-max",
    "bps_rd_max": "throttling.bps-read-max",
    "bps_wr_max": "throttling.bps-write-max",
    "iops_size": "throttling.iops-size",
    "group": "throttling.group",
    "readonly": "read-only",
}
_UINT_MAX: Final = (1 << 32) - 1


class Interface(IntEnum):
    """What ``if=`` names. The numbers show in an error text of drive_add."""

    NONE = 0
    IDE = 1
    SCSI = 2
    FLOPPY = 3
    PFLASH = 4
    MTD = 5
    SD = 6
    VIRTIO = 7
    XEN = 8


_UNITS_PER_BUS: Final = {Interface.IDE: 2, Interface.SCSI: 7}
"""How ``index`` becomes bus and unit."""
_WITH_ERROR_ACTIONS: Final = {Interface.NONE, Interface.IDE, Interface.SCSI, Interface.VIRTIO}


@dataclass(slots=True)
class DriveOptions:
    """A drive as asked for.

    filename, node: what to open, ``node`` nested options in wire form; both empty for a drive without a medium.
    write_cache: cache.writeback. rerror, werror: None where nothing was said. intervals: seconds.
    """

    id: str
    interface: Interface
    bus: int
    unit: int
    cdrom: bool = False
    filename: str | None = None
    node: dict[str, Any] = field(default_factory=dict)
    read_only: bool = False
    direct: bool = False
    no_flush: bool = False
    write_cache: bool = True
    copy_on_read: bool = False
    snapshot: bool = False
    aio: str | None = None
    detect_zeroes: str = "off"
    rerror: str | None = None
    werror: str | None = None
    account_invalid: bool = True
    account_failed: bool = True
    intervals: list[int] = field(default_factory=list)
    throttle: ThrottleConfig = field(default_factory=ThrottleConfig)
    throttle_group: str | None = None
    warnings: list[str] = field(default_factory=list)


def parse_drive(
    text: str, default: Interface, taken: Callable[[Interface, int, int], bool], has_id: Callable[[str], bool]
) -> DriveOptions:
    """Read the text of a ``-drive`` option. Errors: GenericError.

    default: the interface when none is named. taken: whether a place (interface, bus, unit) has a drive. has_id:
    whether a drive of that name exists.
    """
    given = dict(parse_opts(text))
    if "id" in given:
        if not id_wellformed(given["id"]):
            raise GenericError("Parameter 'id' expects an identifier", hint=ID_HINT)
        if has_id(given["id"]):
            raise GenericError(f"Duplicate ID '{given['id']}' for drive")
    for old, new in _RENAMES.items():
        if old in given:
            if new in given:
                raise GenericError(f"'{new}' and its alias '{old}' can't be used at the same time")
            given[new] = given.pop(old)
    _spread_cache_mode(given)
    return _Reader(given).read(default, taken)


def _spread_cache_mode(given: dict[str, str]) -> None:
    mode = given.pop("cache", None)
    if mode is None:
        return
    if mode not in CACHE_MODES:
        raise GenericError("invalid cache option")
    names = ("cache.direct", "cache.no-flush", "cache.writeback")
    for name, value in zip(names, CACHE_MODES[mode], strict=True):
        given.setdefault(name, "on" if value else "off")


class _Reader:
    """Takes options out of *given* one after the other; what is left belongs to the node."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given

    def _text(self, name: str) -> str | None:
        return self._given.pop(name, None)

    def _bool(self, name: str, default: bool) -> bool:
        text = self._given.pop(name, None)
        return default if text is None else option_bool(name, text)

    def _number(self, name: str, default: int) -> int:
        text = self._given.pop(name, None)
        return default if text is None else option_number(name, text)

    def read(self, default: Interface, taken: Callable[[Interface, int, int], bool]) -> DriveOptions:
        # First those of the drive's place, with their own types, then what they mean.
        bus, unit, index = self._place()
        media, interface_name = self._text("media"), self._text("if")
        filename = self._text("file")
        read_only = self._bool("read-only", False)
        copy_on_read = self._bool("copy-on-read", False)
        rerror, werror = self._text("rerror"), self._text("werror")
        if media is not None and media not in ("disk", "cdrom"):
            raise GenericError(f"'{media}' invalid media")
        cdrom = media == "cdrom"
        read_only |= cdrom
        warnings = []
        if read_only and copy_on_read:
            warnings.append("disabling copy-on-read on read-only drive")
            copy_on_read = False
        interface = _interface(interface_name, default)
        bus, unit = _address(interface, bus, unit, index, taken)
        drive_id = self._text("id") or _made_up_id(interface, bus, unit, cdrom)
        drive = DriveOptions(drive_id, interface, bus, unit, cdrom, filename, read_only=read_only, warnings=warnings)
        drive.copy_on_read = copy_on_read
        for name, value in (("werror", werror), ("rerror", rerror)):
            if value is not None and interface not in _WITH_ERROR_ACTIONS:
                raise GenericError(f"{name} is not supported by this bus type")
        self._common(drive)
        _check_action(werror, "write")
        _check_action(rerror, "read")
        drive.werror, drive.rerror = werror, rerror
        self._leave_to_node(drive)
        return drive

    def _place(self) -> tuple[int, int | None, int | None]:
        found: list[int | None] = []
        for name in ("bus", "unit", "index"):
            text = self._text(name)
            if text is None:
                found.append(None)
                continue
            value = option_number(name, text)
            # As in QEMU the number ends up in a C int.
            value = (value + (1 << 31)) % (1 << 32) - (1 << 31)
            found.append(None if value == -1 else value)
        bus, unit, index = found
        return bus or 0, unit, index

    def _common(self, drive: DriveOptions) -> None:
        """Options that a drive shares with no node, and those it treats in a way of its own."""
        drive.snapshot = self._bool("snapshot", False)
        drive.account_invalid = self._bool("stats-account-invalid", True)
        drive.account_failed = self._bool("stats-account-failed", True)
        drive.write_cache = self._bool("cache.writeback", True)
        drive.direct = self._bool("cache.direct", False)
        drive.no_flush = self._bool("cache.no-flush", False)
        throttle, group = self._throttle()
        intervals = self._intervals()
        aio = self._text("aio")
        if aio not in (None, "threads", "native", "io_uring"):
            raise GenericError("invalid aio option")
        throttle.check()
        drive.aio, drive.throttle, drive.throttle_group = aio, throttle, group
        zeroes = self._text("detect-zeroes")
        if zeroes not in (None, "off", "on", "unmap"):
            raise GenericError(f"invalid parameter value: {zeroes}")
        drive.detect_zeroes = zeroes or "off"
        drive.intervals = [_interval(text) for text in intervals]
        form = self._text("format")
        if form is not None:
            if "driver" in self._given:
                raise GenericError("Cannot specify both 'driver' and 'format'")
            self._given["driver"] = form

    def _throttle(self) -> tuple[ThrottleConfig, str | None]:
        config = ThrottleConfig()
        for kind in Kind:
            stem = f"throttling.{kind.wire}"
            config = config.with_rate(
                kind,
                avg=self._number(stem, 0),
                max=self._number(f"{stem}-max", 0),
                burst_length=self._number(f"{stem}-max-length", 1),
            )
        size = self._number("throttling.iops-size", 0)
        return ThrottleConfig(config.rates, size), self._text("throttling.group")

    def _intervals(self) -> list[str]:
        prefix = "stats-intervals."
        rest = {key[len(prefix) :]: self._given.pop(key) for key in list(self._given) if key.startswith(prefix)}
        found: list[str] = []
        while (text := rest.pop(str(len(found)), None)) is not None:
            found.append(text)
        if rest:
            raise GenericError(f"Invalid option stats-intervals.{next(iter(rest))}")
        return found

    def _leave_to_node(self, drive: DriveOptions) -> None:
        options: Mapping[str, Any] = self._given
        if not drive.filename and not options:
            drive.filename = None  # a drive without a medium
            return
        node = crumple(dict(options))
        if drive.filename == "":
            drive.filename = None
        cache = node.setdefault("cache", {})
        cache["direct"], cache["no-flush"] = drive.direct, drive.no_flush
        node["read-only"] = drive.read_only
        node.setdefault("auto-read-only", True)
        drive.node = node


def _interface(name: str | None, default: Interface) -> Interface:
    if name is None:
        return default
    for interface in Interface:
        if interface.name.lower() == name:
            return interface
    raise GenericError(f"unsupported bus type '{name}'")


def _address(
    interface: Interface,
    bus: int,
    unit: int | None,
    index: int | None,
    taken: Callable[[Interface, int, int], bool],
) -> tuple[int, int]:
    most = _UNITS_PER_BUS.get(interface, 0)
    if index is not None:
        if bus or unit is not None:
            raise GenericError("index cannot be used with bus and unit")
        bus, unit = divmod(index, most) if most else (0, index)
    if unit is None:
        unit = 0
        while taken(interface, bus, unit):
            unit += 1
            if most and unit >= most:
                unit -= most
                bus += 1
    if most and unit >= most:
        raise GenericError(f"unit {unit} too big (max is {most - 1})")
    if taken(interface, bus, unit):
        shown = -1 if index is None else index
        raise GenericError(f"drive with bus={bus}, unit={unit} (index={shown}) exists")
    return bus, unit


def _made_up_id(interface: Interface, bus: int, unit: int, cdrom: bool) -> str:
    media = ""
    if interface in (Interface.IDE, Interface.SCSI):
        media = "-cd" if cdrom else "-hd"
    name = interface.name.lower()
    if interface in _UNITS_PER_BUS:
        return f"{name}{bus}{media}{unit}"
    return f"{name}{media}{unit}"


def _check_action(value: str | None, direction: str) -> None:
    allowed = {"ignore", "stop", "report"} | ({"enospc"} if direction == "write" else set())
    if value is not None and value not in allowed:
        raise GenericError(f"'{value}' invalid {direction} error action")


def _interval(text: str) -> int:
    value = scalars.read_integer(text)
    if value is None or not 0 < value <= _UINT_MAX:
        raise GenericError(f"Invalid interval length: {text}")
    return value
