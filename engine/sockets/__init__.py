"""Sockets: addresses as QMP and HMP write them, listening and connecting, with QEMU's error texts."""
