"""Filters: nodes that pass the data of one child on."""
