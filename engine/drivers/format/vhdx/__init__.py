"""VHDX, Hyper-V's disk format: blocks found by one table, metadata by identifiers, a log that makes changes whole."""

from engine.drivers.format.vhdx.driver import VhdxDriver

__all__ = ["VhdxDriver"]
