"""File descriptors that others pass to the engine: over a monitor's socket, or by inheritance."""
