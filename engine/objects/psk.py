"""Pre-shared keys in a context of the ssl module, which can do that by itself since Python 3.13 only.

An older CPython's context is a C struct that has OpenSSL's ``SSL_CTX *`` right behind the object's head (PySSLContext
in Modules/_ssl.c, the same from 3.8 to 3.12). What ssl lacks is called there with ctypes, in the very library that
the module _ssl is linked to. Before that the pointer has to answer as the context does; another Python is refused.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from engine.errors import GenericError

Find: TypeAlias = Callable[[str], bytes | None]
"""The key of an identity, None for an unknown one. Any thread; raises nothing."""

KEY_MAX: Final = 512
"""Bytes of the longest key (PSK_MAX_PSK_LEN of OpenSSL 3)."""
_CIPHERS: Final = ":".join(
    (
        *("kECDHEPSK+CHACHA20", "kDHEPSK+AESGCM", "kDHEPSK+CHACHA20", "kECDHEPSK+AES", "kDHEPSK+AES"),
        *("kPSK+AESGCM", "kPSK+CHACHA20", "kPSK+AES", "!eNULL", "!AESCCM8"),
    )
)
"""Suites of TLS 1.2. All of them need the key, and none a certificate; those with forward secrecy first."""
_CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
"""Suites of TLS 1.3: a key that is given so goes with SHA-256 only. Without the order ChaCha20, slower, came first."""
_MIN_PROTO: Final = 130  # SSL_CTRL_GET_MIN_PROTO_VERSION
_ENCODING: Final = {"encoding": "utf-8", "errors": "surrogateescape"}


def serve(context: ssl.SSLContext, find: Find) -> None:
    """Let clients in by their keys, and in no other way. Errors: GenericError (not with this Python or OpenSSL)."""
    # There is no certificate, so that a client without a key finds nothing to agree on.
    _set_ciphers(context)
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(lambda name: find(name or "") or b"")
        return
    _Library.of(context).serve(context, find)


def present(context: ssl.SSLContext, identity: str, key: bytes) -> None:
    """Trust servers that know *key*, and no others. Errors: GenericError (see serve(); or it is too long)."""
    if len(key) > KEY_MAX:
        raise GenericError(f"Cannot set PSK client credentials: the key is longer than {KEY_MAX} bytes.")
    # In TLS 1.3 a server may answer with a certificate instead: none is trusted. With the key there is none to verify.
    context.verify_mode = ssl.CERT_REQUIRED
    _set_ciphers(context)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: (identity, key))
        return
    _Library.of(context).present(context, identity.encode(**_ENCODING), key)


def _set_ciphers(context: ssl.SSLContext) -> None:
    try:
        context.set_ciphers(_CIPHERS)
    except ssl.SSLError:
        raise _impossible("this OpenSSL") from None


def _impossible(what: str) -> GenericError:
    return GenericError(f"TLS with pre-shared keys is not possible with {what}")


class _Library:
    """What the ssl module lacks of the OpenSSL below it. Errors: AttributeError, OSError (functions not found)."""

    def __init__(self) -> None:
        # Little else needs ctypes, and every start would wait for it.
        import _ssl
        import ctypes

        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        pointer, text, number, wide = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint64
        self._client_type = ctypes.CFUNCTYPE(number, pointer, text, pointer, number, pointer, number)
        self._server_type = ctypes.CFUNCTYPE(number, pointer, text, pointer, number)
        self._options = ctypes.CFUNCTYPE(wide, pointer)(("SSL_CTX_get_options", library))
        control = ctypes.CFUNCTYPE(ctypes.c_long, pointer, ctypes.c_int, ctypes.c_long, pointer)
        self._control = control(("SSL_CTX_ctrl", library))
        suites = ctypes.CFUNCTYPE(ctypes.c_int, pointer, text)
        self._set_suites = suites(("SSL_CTX_set_ciphersuites", library))
        belongs = ctypes.CFUNCTYPE(ctypes.c_int, pointer, text, number)
        self._set_session_context = belongs(("SSL_CTX_set_session_id_context", library))
        set_client = ctypes.CFUNCTYPE(None, pointer, self._client_type)
        self._set_client = set_client(("SSL_CTX_set_psk_client_callback", library))
        set_server = ctypes.CFUNCTYPE(None, pointer, self._server_type)
        self._set_server = set_server(("SSL_CTX_set_psk_server_callback", library))
        self._move = ctypes.memmove
        self._pointer = pointer
        self._has_room = _ssl._SSLContext.__basicsize__ >= object.__basicsize__ + ctypes.sizeof(pointer)

    @classmethod
    def of(cls, context: ssl.SSLContext) -> _Library:
        """The library, after a look at whether it can be used on *context*. Errors: GenericError."""
        if sys.implementation.name != "cpython" or not (3, 8) <= sys.version_info < (3, 13):
            raise _impossible("this Python")
        try:
            library = _library()
            address = library.address(context)
        except (AttributeError, OSError):
            raise _impossible("this Python, 3.13 or newer is needed") from None
        if address is None:
            raise _impossible("this Python, 3.13 or newer is needed")
        return library

    def address(self, context: ssl.SSLContext) -> int | None:
        """Where OpenSSL's context is; None if what is there is something else."""
        if not self._has_room:
            return None
        found: int | None = self._pointer.from_address(id(context) + object.__basicsize__).value
        if found is None or self._options(found) & (1 << 64) - 1 != context.options & (1 << 64) - 1:
            return None
        lowest = context.minimum_version
        told = self._control(found, _MIN_PROTO, 0, None)
        # An unset one has a name of its own in Python.
        return found if told == (0 if lowest is ssl.TLSVersion.MINIMUM_SUPPORTED else lowest) else None

    def serve(self, context: ssl.SSLContext, find: Find) -> None:
        def answer(_: Any, identity: bytes | None, room: int, size: int) -> int:
            key = find((identity or b"").decode(**_ENCODING))
            if key is None or len(key) > size:
                return 0
            self._move(room, key, len(key))
            return len(key)

        callback = self._server_type(answer)
        self._set_server(self._prepare(context, callback), callback)

    def present(self, context: ssl.SSLContext, identity: bytes, key: bytes) -> None:
        def answer(_: Any, hint: bytes | None, name: int, name_size: int, room: int, size: int) -> int:
            if len(identity) >= name_size or len(key) > size:
                return 0
            self._move(name, identity + b"\0", len(identity) + 1)
            self._move(room, key, len(key))
            return len(key)

        callback = self._client_type(answer)
        found = self._prepare(context, callback)
        # In TLS 1.3 a key counts as a session: not as one of the context that Python gave the client before 3.13.
        self._set_session_context(found, b"", 0)
        self._set_client(found, callback)

    def _prepare(self, context: ssl.SSLContext, callback: object) -> int | None:
        found = self.address(context)
        self._set_suites(found, _CIPHERS_13)
        # OpenSSL calls it as long as the context lives.
        vars(context)["_psk_callback"] = callback
        return found


_library = cache(_Library)
