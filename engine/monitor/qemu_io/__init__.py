"""qemu-io: single requests to a node or device, by hand. A new command is a function in one of the files below."""

from __future__ import annotations

from engine.monitor.qemu_io.run import run_command

__all__ = ["run_command"]
