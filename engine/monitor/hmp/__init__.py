"""HMP, the monitor for people. A new command is a file in ``commands`` and a line in its import list."""

from __future__ import annotations

from engine.monitor.hmp.interpreter import Monitor, execute, run_line

__all__ = ["Monitor", "execute", "run_line"]
