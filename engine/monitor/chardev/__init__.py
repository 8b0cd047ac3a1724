"""Character devices: where a monitor's bytes come from and go to. A new kind is a file here and a line below."""

from __future__ import annotations

from engine.monitor.chardev import socket, stdio  # noqa: F401
from engine.monitor.chardev.base import Chardev, backend_names, make_chardev
from engine.monitor.chardev.options import ChardevOptions, chardev_from_option

__all__ = ["Chardev", "ChardevOptions", "backend_names", "chardev_from_option", "make_chardev"]
