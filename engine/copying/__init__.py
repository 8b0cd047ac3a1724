"""Copying between nodes: ranges, in the kernel where possible, and the state at one moment while a guest writes."""
