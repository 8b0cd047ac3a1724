"""Guest devices: users of nodes that behave like a machine's disks."""
