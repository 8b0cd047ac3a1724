"""tls-creds-x509: certificates. The files are checked when the object is made, so that mistakes show early.

What is checked and in which words is QEMU's: validity in time, constraints, purposes, and the signature by the CA. At a
connection OpenSSL is stricter than GnuTLS in one thing: a certificate for servers only is none of a client.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import ssl
from typing import TYPE_CHECKING, Annotated, Final

from engine.errors import GenericError
from engine.objects.base import user_creatable
from engine.objects.secret_common import find_secret_text
from engine.objects.tls import TLSCreds, TlsCredsProperties, pem_fault, read_file
from engine.qapi import Feature

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CA: Final = "ca-cert.pem"
_CRL: Final = "ca-crl.pem"
_CRL_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_ANY_PURPOSE: Final = "2.5.29.37.0"
_PURPOSE: Final = {"server": "1.3.6.1.5.5.7.3.1", "client": "1.3.6.1.5.5.7.3.2"}


class TlsCredsX509Properties(TlsCredsProperties):
    """sanity_check: look for mistakes in the certificates (default). passwordid: secret that opens the key file."""

    loaded: Annotated[bool | None, Feature("deprecated")] = None
    sanity_check: bool | None = None
    passwordid: str | None = None


@user_creatable
class TLSCredsX509(TLSCreds):
    """A certificate and its key (a client may do without), and the CA certificates that peers are checked against."""

    type_name = "tls-creds-x509"
    Options = TlsCredsX509Properties
    properties = ("endpoint", "dir", "verify-peer", "priority", "sanity-check", "passwordid", "loaded")
    options: TlsCredsX509Properties

    def load(self) -> None:
        side = "server" if self.is_server else "client"
        ca = self.path(_CA)
        assert ca is not None
        self._ca = ca
        crl = self.path(_CRL, required=False) if self.is_server else None
        self._cert = self.path(f"{side}-cert.pem", required=self.is_server)
        self._key = self.path(f"{side}-key.pem", required=self.is_server)
        if self.options.sanity_check is not False:
            _check_files(ca, self._cert, side)
        self._password: str | None = None
        if self._cert is not None and self._key is not None:
            if self.options.passwordid is not None:
                self._password = find_secret_text(self.objects, self.options.passwordid)
            _check_pair(self._cert, self._key, self._password)
        self._revoked: frozenset[tuple[bytes, int]] = frozenset() if crl is None else _read_crl(crl)
        self._dh_params = self.load_dh_params() if self.is_server else None

    def context(self) -> ssl.SSLContext:
        context = self.new_context()
        try:
            if self._cert is not None and self._key is not None:
                context.load_cert_chain(self._cert, self._key, self._password or "")
            # Without any certificate nobody is trusted, which is what such a file says.
            with contextlib.suppress(ssl.SSLError):
                context.load_verify_locations(self._ca)
            if self._dh_params is not None:
                context.load_dh_params(self._dh_params)
        except (ssl.SSLError, OSError) as exc:
            raise GenericError(f"Cannot load TLS credentials '{self.id}': {exc}") from exc
        if self.verify_peer:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def check_peer(self, certificate: bytes) -> None:
        # Not by OpenSSL: for it a CA that may not sign such lists, as those of QEMU's manual, has revoked everything.
        if self._revoked:
            from cryptography.x509 import load_der_x509_certificate

            try:
                peer = load_der_x509_certificate(certificate)
                number = (peer.issuer.public_bytes(), peer.serial_number)
            except ValueError:
                raise GenericError("The certificate is not trusted") from None
            if number in self._revoked:
                raise GenericError("The certificate has been revoked")


# -- the certificate and its key -------------------------------------------------------------------------------------


def _check_pair(cert: str, key: str, password: str | None) -> None:
    """Refuse a certificate and a key that can't be used together. Errors: GenericError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    def fail(reason: str) -> GenericError:
        return GenericError(f"Cannot load certificate '{cert}' & key '{key}': {reason}")

    data = read_file(key)
    encrypted = b"ENCRYPTED" in data
    try:
        private = load_pem_private_key(data, password.encode() if password is not None and encrypted else None)
    except (ValueError, TypeError):
        raise fail("Decryption has failed." if encrypted else "The requested data were not available.") from None
    data = read_file(cert)
    try:
        found = load_pem_x509_certificate(data)
    except ValueError:
        reason = pem_fault(data)
        raise fail("Base64 decoding error." if "header" in reason else reason) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != found.public_key().public_bytes(*form):
        raise fail("The certificate and the given key do not match.")


def _read_crl(path: str) -> frozenset[tuple[bytes, int]]:
    """Issuer (DER) and number of each certificate that the lists in a file revoke. Errors: GenericError."""
    from cryptography.x509 import load_pem_x509_crl

    data = read_file(path)
    try:
        lists = [load_pem_x509_crl(text) for text in _CRL_PEM.findall(data) or [data]]
        return frozenset((each.issuer.public_bytes(), revoked.serial_number) for each in lists for revoked in each)
    except ValueError:
        raise GenericError(f"Cannot load CRL '{path}': Base64 decoding error.") from None


# -- the sanity check ------------------------------------------------------------------------------------------------


def _check_files(ca: str, cert: str | None, side: str) -> None:
    """The sanity check. side: server or client. Errors: GenericError."""
    from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

    own: Certificate | None = None
    if cert is not None:
        data = read_file(cert)
        try:
            own = load_pem_x509_certificate(data)
        except ValueError:
            raise GenericError(f"Unable to import {side} certificate {cert}: {pem_fault(data)}") from None
    try:
        authorities = load_pem_x509_certificates(read_file(ca))
    except ValueError:
        raise GenericError(f"Unable to import CA certificate list {ca}") from None
    if own is not None and cert is not None:
        _check_one(own, cert, side, is_ca=False)
    for authority in authorities:
        _check_one(authority, ca, side, is_ca=True)
    if own is not None:
        reason = _distrust(own, authorities)
        if reason is not None:
            raise GenericError(f"Our own certificate {cert} failed validation against {ca}: {reason}")


def _check_one(cert: Certificate, path: str, side: str, *, is_ca: bool) -> None:
    now = datetime.datetime.now(datetime.UTC)
    what = "CA" if is_ca else side
    if cert.not_valid_after_utc < now:
        raise GenericError(f"The {what} certificate {path} has expired")
    if cert.not_valid_before_utc > now:
        raise GenericError(f"The {what} certificate {path} is not yet active")
    _check_constraints(cert, path, side, is_ca)
    _check_usage(cert, path, is_ca)
    if not is_ca:
        _check_purpose(cert, path, side)


def _check_constraints(cert: Certificate, path: str, side: str, is_ca: bool) -> None:
    from cryptography.x509 import BasicConstraints, ExtensionNotFound

    try:
        shows_ca = cert.extensions.get_extension_for_class(BasicConstraints).value.ca
    except ExtensionNotFound:
        if is_ca:
            raise GenericError(f"The certificate {path} is missing basic constraints for a CA") from None
        return
    if is_ca and not shows_ca:
        raise GenericError(f"The certificate {path} basic constraints do not show a CA")
    if shows_ca and not is_ca:
        raise GenericError(f"The certificate {path} basic constraints show a CA, but we need one for a {side}")


def _check_usage(cert: Certificate, path: str, is_ca: bool) -> None:
    from cryptography.x509 import ExtensionNotFound, KeyUsage

    try:
        usage = cert.extensions.get_extension_for_class(KeyUsage)
    except ExtensionNotFound:
        return
    permitted = usage.value.key_cert_sign if is_ca else usage.value.digital_signature
    if usage.critical and not permitted:
        wanted = "certificate signing" if is_ca else "digital signature"
        raise GenericError(f"Certificate {path} usage does not permit {wanted}")


def _check_purpose(cert: Certificate, path: str, side: str) -> None:
    from cryptography.x509 import ExtendedKeyUsage, ExtensionNotFound

    try:
        purposes = cert.extensions.get_extension_for_class(ExtendedKeyUsage)
    except ExtensionNotFound:
        return
    found = {purpose.dotted_string for purpose in purposes.value}
    if purposes.critical and not found & {_PURPOSE[side], _ANY_PURPOSE}:
        raise GenericError(f"Certificate {path} purpose does not allow use with a TLS {side}")


def _distrust(cert: Certificate, authorities: list[Certificate]) -> str | None:
    """Why *cert* can't be verified by *authorities*; None when it can."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import ExtensionNotFound, KeyUsage

    issuers = [authority for authority in authorities if authority.subject == cert.issuer]
    if not issuers:
        return "The certificate hasn't got a known issuer"
    for issuer in issuers:
        try:
            if not issuer.extensions.get_extension_for_class(KeyUsage).value.key_cert_sign:
                continue
        except ExtensionNotFound:
            pass
        try:
            cert.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return None
    return "The certificate is not trusted"
