"""The kinds of character devices there are. Importing this module makes every kind known."""

from __future__ import annotations

from engine.monitor.chardev import socket, stdio  # noqa: F401
from engine.monitor.chardev.base import Chardev, backend_names, make_chardev

__all__ = ["Chardev", "backend_names", "make_chardev"]
