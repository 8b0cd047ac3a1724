"""Block drivers. Importing this package makes every driver known by its name; a new one is a file and a line here.

A driver's module is loaded when the driver is needed: most sessions use few of them, and starting must not take long.
"""

from __future__ import annotations

from typing import Final

from engine.graph.registry import drivers

_FILTERS: Final = {
    "blkdebug": "blkdebug",
    "blklogwrites": "blklogwrites",
    "blkreplay": "blkreplay",
    "blkverify": "blkverify",
    "compress": "compress",
    "copy-before-write": "copy_before_write",
    "copy-on-read": "copy_on_read",
    "preallocate": "preallocate",
    "quorum": "quorum",
    "snapshot-access": "snapshot_access",
    "throttle": "throttle",
}
"""Name: module."""
_Magic = tuple[int, bytes]
_FORMATS: Final[dict[str, _Magic | None]] = {
    # The likelier ones first: probing stops at the first that is sure.
    "qcow2": (0, b"QFI\xfb"),
    "qcow": (0, b"QFI\xfb"),
    "qed": (0, b"QED\0"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vpc": (0, b"conectix"),
    "parallels": (0, b"Withou"),
    "vmdk": None,
    "vhdx": (0, b"vhdxfile"),
    "bochs": (0, b"Bochs Virtual HD Image"),
    "cloop": (0, b"#!/bin/sh"),
    "dmg": None,
    "raw": None,
}
"""Name, which is the module's too: offset and bytes that an image is sure to have."""
_PROTOCOLS: Final = {
    "file": ("file", ("file",)),
    "host_device": ("file", ("host_device",)),
    "host_cdrom": ("host_cdrom", ("host_cdrom",)),
    "nbd": ("nbd", ("nbd", "nbd+tcp", "nbd+unix")),
    "null-co": ("null", ("null-co",)),
    "null-aio": ("null", ("null-aio",)),
}
"""Name: module, prefixes of file names."""
_FILTER_PREFIXES: Final = ("blkdebug", "blkverify")

for _name, _magic in _FORMATS.items():
    drivers.announce(_name, f"engine.drivers.format.{_name}", probes=True, magic=_magic)
for _name, (_module, _prefixes) in _PROTOCOLS.items():
    drivers.announce(_name, f"engine.drivers.protocol.{_module}", prefixes=_prefixes)
for _name, _module in _FILTERS.items():
    _own_prefixes = (_name,) if _name in _FILTER_PREFIXES else ()
    drivers.announce(_name, f"engine.drivers.filter.{_module}", prefixes=_own_prefixes)
