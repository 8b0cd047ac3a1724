"""Actions that take effect all together or not at all."""
