"""Monitors: how programs (QMP) and people (HMP) talk to an engine, over sockets and the standard streams."""
