"""Version 1 of QEMU's copy-on-write format: two levels of tables, compressed clusters, no refcounts."""

from engine.drivers.format.qcow.driver import QcowDriver

__all__ = ["QcowDriver"]
