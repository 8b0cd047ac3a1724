"""Why TLS with a server failed, in QEMU's words: those that people look for, though another library is below."""

from __future__ import annotations

import errno
import os
import ssl
from typing import Final

from engine.errors import GenericError, os_error_text

_HANDSHAKE: Final = "TLS handshake failed: "
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})
"""Codes of X509_verify_cert_error_string(3), as the next ones are."""
_REVOKED: Final = 23
_WEAK: Final = frozenset({66, 67, 68})
_OTHER_NAME: Final = frozenset({62, 64})


def handshake_failure(exc: OSError, hostname: str | None) -> GenericError:
    """The error for *exc* of a handshake with the server that should be *hostname*."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _distrust(exc.verify_code, exc.verify_message, hostname)
    if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return GenericError(f"{_HANDSHAKE}The TLS connection was non-properly terminated.")
    if isinstance(exc, TimeoutError):
        return GenericError(f"{_HANDSHAKE}{os.strerror(errno.ETIMEDOUT)}")
    if not isinstance(exc, ssl.SSLError):
        return GenericError(f"{_HANDSHAKE}{os_error_text(exc)}")
    alert = _alert(exc)
    if alert is not None:
        return GenericError(f"{_HANDSHAKE}A TLS fatal alert has been received.", alert)
    return GenericError(f"{_HANDSHAKE}{_reason(exc)}")


def channel_failure(exc: OSError, doing: str) -> OSError:
    """The error for *exc* after the handshake, with the server's alert as a note. doing: read from, write to."""
    # The errno of an SSLError is none of the system's.
    failure = OSError(f"Cannot {doing} TLS channel: {os.strerror(errno.EIO)}")
    alert = _alert(exc) if isinstance(exc, ssl.SSLError) else None
    if alert is not None:
        failure.add_note(alert)
    return failure


def _alert(exc: ssl.SSLError) -> str | None:
    """What the server has sent to say why it gives up; None when it is not that."""
    # OpenSSL's name for it: "tlsv1 alert unknown ca".
    _, found, alert = _reason(exc).partition(" alert ")
    return f"server reported: {alert}" if found else None


def _reason(exc: ssl.SSLError) -> str:
    """What OpenSSL said, without where in which of Python's files."""
    if exc.reason:
        return exc.reason.lower().replace("_", " ")
    # There is no name for it in Python, but in the text: "[SSL] tlsv1 alert unknown psk identity (_ssl.c:992)".
    return str(exc.strerror or exc).partition("] ")[2].partition(" (_ssl")[0] or str(exc)


def _distrust(code: int, message: str, hostname: str | None) -> GenericError:
    if code in _OTHER_NAME:
        return GenericError(f"Certificate does not match the hostname {hostname}")
    if code in _UNKNOWN_ISSUER:
        return GenericError("The certificate hasn't got a known issuer")
    if code == _REVOKED:
        return GenericError("The certificate has been revoked")
    if code in _WEAK:
        return GenericError("The certificate uses an insecure algorithm")
    return GenericError("The certificate is not trusted", f"{message}.")
