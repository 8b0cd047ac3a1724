"""secret_keyring: a secret in the kernel's key ring."""

from __future__ import annotations

import os
from typing import Final

from engine.errors import GenericError
from engine.objects.base import user_creatable
from engine.objects.secret_common import SecretCommon, SecretCommonProperties
from engine.qapi import Int32

_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "s390x": 280, "ppc64le": 271}
"""Number of the system call by machine."""
_READ: Final = 11


class SecretKeyringProperties(SecretCommonProperties):
    """serial: number of the key."""

    serial: Int32


@user_creatable
class SecretKeyring(SecretCommon):
    """A secret that the kernel keeps for this process's user or session."""

    type_name = "secret_keyring"
    Options = SecretKeyringProperties
    properties = ("iv", "keyid", "loaded", "format", "serial")
    options: SecretKeyringProperties

    def load(self) -> bytes:
        serial = self.options.serial
        try:
            return _read_key(serial)
        except OSError as exc:
            raise GenericError(
                f"Unable to read serial key {serial & 0xFFFFFFFF:08x}: {os.strerror(exc.errno or 0)}"
            ) from exc


def _read_key(serial: int) -> bytes:
    """The payload of a key. Errors: OSError."""
    # Nothing else of this needs ctypes, and every start would wait for it.
    import ctypes

    number = _KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(38, os.strerror(38))
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    buffer = ctypes.create_string_buffer(1)
    while True:
        size = syscall(number, _READ, serial, buffer, ctypes.c_size_t(len(buffer)), 0)
        if size < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        if size <= len(buffer):
            return buffer.raw[:size]
        buffer = ctypes.create_string_buffer(size)
