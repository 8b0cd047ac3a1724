"""QED, QEMU's enhanced disk format: two levels of tables, no refcounts, a flag that asks for a check after a crash."""

from engine.drivers.format.qed.driver import QedDriver

__all__ = ["QedDriver"]
