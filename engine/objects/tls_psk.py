"""tls-creds-psk: keys that both sides know beforehand."""

from __future__ import annotations

import logging
import re
import ssl
from typing import Annotated, Final

from engine.errors import GenericError
from engine.objects import psk
from engine.objects.base import user_creatable
from engine.objects.tls import TLSCreds, TlsCredsProperties, read_file
from engine.qapi import Feature

log = logging.getLogger("engine.objects")

_FILE: Final = "keys.psk"
_KEY_MIN: Final = 4
_HEX: Final = re.compile(r"[0-9a-fA-F]*")


class TlsCredsPskProperties(TlsCredsProperties):
    """username: whose key a client uses (qemu)."""

    loaded: Annotated[bool | None, Feature("deprecated")] = None
    username: str | None = None


@user_creatable
class TLSCredsPSK(TLSCreds):
    """Keys in ``keys.psk``, a line ``USER:KEY-IN-HEX`` each. A client has one of them, from when it is made.

    A server looks at the file for every client that comes, as GnuTLS does below QEMU's.
    """

    type_name = "tls-creds-psk"
    Options = TlsCredsPskProperties
    properties = ("endpoint", "dir", "verify-peer", "priority", "username", "loaded")
    options: TlsCredsPskProperties

    def load(self) -> None:
        path = self.path(_FILE)
        assert path is not None
        self._path = path
        username = self.options.username
        if self.is_server:
            read_file(path)
            if username is not None:
                raise GenericError("username should not be set when endpoint=server")
            return
        keys = _read_keys(path)
        if username is None:
            username = "qemu"
        if username not in keys:
            raise GenericError(f"Username {username} not found in PSK file {path}")
        key = _from_hex(keys[username])
        if key is None:
            raise GenericError("Cannot set PSK client credentials: Error in parsing.")
        if len(key) < _KEY_MIN:
            raise GenericError("Cannot set PSK client credentials: The request is invalid.")
        self._username, self._key = username, key

    def context(self) -> ssl.SSLContext:
        context = self.new_context()
        if self.is_server:
            psk.serve(context, self.find_key)
        else:
            psk.present(context, self._username, self._key)
        return context

    def find_key(self, username: str) -> bytes | None:
        """A client's key, by the server's file as it is now; None if there is none. Any thread."""
        try:
            keys = _read_keys(self._path, coded=True)
        except GenericError as exc:
            log.warning("%s %s: %s", self.type_name, self.id, exc)
            return None
        return _from_hex(keys.get(username, ""))


def _read_keys(path: str, *, coded: bool = False) -> dict[str, str]:
    """The keys in hex, by name: of several the first. coded: ``#`` begins a name in hex. Errors: GenericError."""
    keys: dict[str, str] = {}
    for line in read_file(path).decode(errors="surrogateescape").split("\n"):
        name, colon, key = line.partition(":")
        if not colon:
            continue
        if name.startswith("#"):
            plain = _from_hex(name[1:]) if coded else None
            if not plain:
                continue
            name = plain.decode(errors="surrogateescape")
        keys.setdefault(name, key)
    return keys


def _from_hex(text: str) -> bytes | None:
    if len(text) % 2 or not _HEX.fullmatch(text):
        return None
    return bytes.fromhex(text)
