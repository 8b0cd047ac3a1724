"""tls-creds-psk: keys that both sides know beforehand."""

from __future__ import annotations

import re
import ssl
from typing import Annotated, Final

from engine.errors import GenericError
from engine.objects.base import user_creatable
from engine.objects.tls import TLSCreds, TlsCredsProperties, read_file
from engine.qapi import Feature

_FILE: Final = "keys.psk"
_KEY_MIN: Final = 4
_HEX: Final = re.compile(r"[0-9a-fA-F]*")


class TlsCredsPskProperties(TlsCredsProperties):
    """username: whose key a client uses (qemu)."""

    loaded: Annotated[bool | None, Feature("deprecated")] = None
    username: str | None = None


@user_creatable
class TLSCredsPSK(TLSCreds):
    """Keys in ``keys.psk``, a line ``USER:KEY-IN-HEX`` each. A server has all of them, a client one."""

    type_name = "tls-creds-psk"
    Options = TlsCredsPskProperties
    properties = ("endpoint", "dir", "verify-peer", "priority", "username", "loaded")
    options: TlsCredsPskProperties

    def load(self) -> None:
        path = self.path(_FILE)
        assert path is not None
        keys = _read_keys(path)
        username = self.options.username
        if self.is_server:
            if username is not None:
                raise GenericError("username should not be set when endpoint=server")
            self._keys = {name: key for name, text in keys.items() if (key := _from_hex(text)) is not None}
            return
        if username is None:
            username = "qemu"
        if username not in keys:
            raise GenericError(f"Username {username} not found in PSK file {path}")
        key = _from_hex(keys[username])
        if key is None:
            raise GenericError("Cannot set PSK client credentials: Error in parsing.")
        if len(key) < _KEY_MIN:
            raise GenericError("Cannot set PSK client credentials: The request is invalid.")
        self._username, self._keys = username, {username: key}

    def context(self) -> ssl.SSLContext:
        context = self.new_context()
        if not hasattr(context, "set_psk_client_callback"):
            raise GenericError("TLS with pre-shared keys needs Python 3.13 or newer")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("PSK")
        if self.is_server:
            context.set_psk_server_callback(lambda name: self._keys.get(name or "", b""))  # type: ignore[attr-defined]
        else:
            answer = (self._username, self._keys[self._username])
            context.set_psk_client_callback(lambda hint: answer)
        return context


def _read_keys(path: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for line in read_file(path).decode(errors="surrogateescape").split("\n"):
        name, colon, key = line.partition(":")
        if colon and not line.startswith("#"):
            keys.setdefault(name, key)
    return keys


def _from_hex(text: str) -> bytes | None:
    if len(text) % 2 or not _HEX.fullmatch(text):
        return None
    return bytes.fromhex(text)
