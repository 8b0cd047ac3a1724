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
_FORMATS: Final = {
    # The likelier ones first: probing stops at the first that is sure.
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "vdi": "vdi",
    "vpc": "vpc",
    "parallels": "parallels",
    "vmdk": "vmdk",
    "vhdx": "vhdx",
    "bochs": "bochs",
    "cloop": "cloop",
    "dmg": "dmg",
    "raw": "raw",
}
_PROTOCOLS: Final = {
    "file": ("file", "file"),
    "host_device": ("file", "host_device"),
    "host_cdrom": ("host_cdrom", "host_cdrom"),
    "null-co": ("null", "null-co"),
    "null-aio": ("null", "null-aio"),
}
"""Name: module, prefix of file names."""
_FILTER_PREFIXES: Final = ("blkdebug", "blkverify")

for _name, _module in _FORMATS.items():
    drivers.announce(_name, f"engine.drivers.format.{_module}", probes=True)
for _name, (_module, _prefix) in _PROTOCOLS.items():
    drivers.announce(_name, f"engine.drivers.protocol.{_module}", prefix=_prefix)
for _name, _module in _FILTERS.items():
    _own_prefix = _name if _name in _FILTER_PREFIXES else None
    drivers.announce(_name, f"engine.drivers.filter.{_module}", prefix=_own_prefix)
