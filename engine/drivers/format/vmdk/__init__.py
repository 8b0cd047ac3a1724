"""The VMware disk format: descriptors, flat, sparse, compressed and ESX extents."""

from engine.drivers.format.vmdk.driver import VmdkDriver

__all__ = ["VmdkDriver"]
