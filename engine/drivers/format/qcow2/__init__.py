"""The qcow2 image format.

driver.py is what the graph sees; image.py the state of an open image; ordering.py explains in which order things
reach the disk.
"""

from engine.drivers.format.qcow2.driver import Qcow2Driver

__all__ = ["Qcow2Driver"]
