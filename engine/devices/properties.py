"""Properties of guest devices: their types, how values given as text are read, and QEMU's texts for wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import DeviceNotFound, GenericError
from engine.qapi import scalars

UNSET: Final = object()
"""The default of a property that has none: it is absent until given."""

_PCI_ADDRESS: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,2})(?:\.([0-7]))?\Z")
_ON_OFF_AUTO: Final = ("on", "off", "auto")
BLOCKDEV_ON_ERROR: Final = ("report", "ignore", "enospc", "stop", "auto")
_FDC_TYPES: Final = ("144", "288", "120", "none", "auto")
_TRANSLATIONS: Final = ("auto", "none", "lba", "large", "rechs")


@dataclass(frozen=True, slots=True)
class Property:
    """One property. type: as the help shows it. default: UNSET for none. note: what the help says about it."""

    name: str
    type: str
    default: Any = UNSET
    note: str = ""

    def read(self, owner: str, text: str) -> Any:
        """The value that *text* means. owner: the device model, for messages. Errors: GenericError."""
        return _READERS[self.type](self, owner, text)

    def help_line(self) -> str:
        """As ``-device MODEL,help`` shows it."""
        line = f"  {self.name}=<{self.type}>"
        default = "" if self.default is UNSET else f" (default: {_shown(self.default)})"
        return f"{line:<24} - {self.note}{default}" if self.note or default else line


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _read_bool(prop: Property, owner: str, text: str) -> bool:
    value = scalars.parse_bool(text)
    if value is None:
        raise GenericError(f"Parameter '{prop.name}' expects 'on' or 'off'")
    return value


def _integer_reader(kind: str, low: int, high: int) -> Callable[[Property, str, str], int]:
    parse = scalars.parse_int64 if low < 0 else scalars.parse_uint64

    def read(prop: Property, owner: str, text: str) -> int:
        value = parse(text)
        if value is None:
            raise GenericError(f"Parameter '{prop.name}' expects integer")
        if not low <= value <= high:
            raise GenericError(f"Parameter '{prop.name}' expects {kind}")
        return value

    return read


def _read_size(prop: Property, owner: str, text: str) -> int:
    value = scalars.parse_size(text)
    if value is None:
        raise GenericError(f"Parameter '{prop.name}' expects size")
    if prop.name in ("logical_block_size", "physical_block_size") and value:
        if not 512 <= value <= 2 << 20:
            raise GenericError(f"Property .{prop.name} doesn't take value {value} (minimum: 512, maximum: {2 << 20})")
        if value & (value - 1):
            raise GenericError(f"Property .{prop.name} doesn't take value '{value}', it's not a power of 2")
    return value


def _enum_reader(values: tuple[str, ...]) -> Callable[[Property, str, str], str]:
    def read(prop: Property, owner: str, text: str) -> str:
        if text not in values:
            raise GenericError(f"Parameter '{prop.name}' does not accept value '{text}'")
        return text

    return read


def _read_text(prop: Property, owner: str, text: str) -> str:
    return text


def _read_link(prop: Property, owner: str, text: str) -> str:
    # Nothing of the kinds that these links lead to exists here.
    if text:
        raise DeviceNotFound(f"Device '{text}' not found")
    return text


def _read_pci_address(prop: Property, owner: str, text: str) -> int:
    match = _PCI_ADDRESS.match(text)
    slot = int(match[1], 16) if match is not None else 32
    if match is None or slot > 31:
        raise GenericError(f"Property '{owner}.{prop.name}' doesn't take value '{text}'")
    return slot << 3 | int(match[2] or "0")


_READERS: Final[dict[str, Callable[[Property, str, str], Any]]] = {
    "bool": _read_bool,
    "uint8": _integer_reader("uint8_t", 0, (1 << 8) - 1),
    "uint16": _integer_reader("uint16_t", 0, (1 << 16) - 1),
    "uint32": _integer_reader("uint32_t", 0, (1 << 32) - 1),
    "uint64": _integer_reader("uint64", 0, (1 << 64) - 1),
    "size": _read_size,
    "str": _read_text,
    "OnOffAuto": _enum_reader(_ON_OFF_AUTO),
    "BlockdevOnError": _enum_reader(BLOCKDEV_ON_ERROR),
    "FdcDriveType": _enum_reader(_FDC_TYPES),
    "BiosAtaTranslation": _enum_reader(_TRANSLATIONS),
    "link<iothread>": _read_text,
    "link<memory-backend>": _read_link,
    "link<nvme-subsys>": _read_link,
    "link<device>": _read_link,
}


def _read_int32(prop: Property, owner: str, text: str) -> int:
    if prop.name == "addr":
        return _read_pci_address(prop, owner, text)
    return _integer_reader("int32_t", -(1 << 31), (1 << 31) - 1)(prop, owner, text)


_READERS["int32"] = _read_int32


def as_text(value: Any) -> str | None:
    """A property given in QMP as the text it would be on a command line; None for lists, objects and null."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return str(value)
    return value if isinstance(value, str) else None
