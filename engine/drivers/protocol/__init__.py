"""Drivers at the bottom of the graph: they reach the host or a network."""
