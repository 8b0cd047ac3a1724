"""What all TLS credentials have: where the files are, which side they are for, and the lookup for who needs them."""

from __future__ import annotations

import abc
import os
import re
import ssl
from typing import TYPE_CHECKING, Final

from engine.errors import GenericError, os_error_text
from engine.objects.base import UserObject
from engine.qapi import Enum, Struct

if TYPE_CHECKING:
    from engine.objects.store import Objects

DH_PARAMS: Final = "dh-params.pem"
_VERSIONS: Final = {
    "VERS-TLS1.0": ssl.TLSVersion.TLSv1,
    "VERS-TLS1.1": ssl.TLSVersion.TLSv1_1,
    "VERS-TLS1.2": ssl.TLSVersion.TLSv1_2,
    "VERS-TLS1.3": ssl.TLSVersion.TLSv1_3,
}
_PEM: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----\s+([A-Za-z0-9+/=\s]+)-----END ")


class QCryptoTLSCredsEndpoint(Enum):
    """Which side of a connection credentials are for.

    client: for connections that are made
    server: for connections that are accepted
    """

    CLIENT = "client"
    SERVER = "server"


class TlsCredsProperties(Struct):
    """Options of TLS credentials.

    verify_peer: refuse a peer without valid credentials (default). dir: folder of the files. endpoint: which side
    they are for (client). priority: GnuTLS priority string.
    """

    verify_peer: bool | None = None
    dir: str | None = None
    endpoint: QCryptoTLSCredsEndpoint | None = None
    priority: str | None = None


class TLSCreds(UserObject, abc.ABC):
    """TLS credentials, whose files are read once when they are made."""

    ancestors = ("tls-creds", "object")
    defaults = {"endpoint": "client", "verify-peer": True, "sanity-check": True}  # noqa: RUF012
    options: TlsCredsProperties
    _server = False

    def complete(self) -> None:
        # What is changed later makes no difference any more.
        self._server = self.options.endpoint is QCryptoTLSCredsEndpoint.SERVER
        self.verify_peer = self.options.verify_peer is not False
        self.load()

    @property
    def is_server(self) -> bool:
        return self._server

    @abc.abstractmethod
    def load(self) -> None:
        """Read and check the files. Errors: GenericError."""

    @abc.abstractmethod
    def context(self) -> ssl.SSLContext:
        """A new context for connections of these credentials. Errors: GenericError (not by this Python or OpenSSL)."""

    def check_peer(self, certificate: bytes) -> None:
        """Refuse a peer by its certificate (DER), which has been verified. Any thread. Errors: GenericError."""

    # -- files -----------------------------------------------------------------------------------------------

    def path(self, name: str, *, required: bool = True) -> str | None:
        """The path of a file, None for one that is not required and not there. Errors: GenericError."""
        folder = self.options.dir
        if folder is None:
            if required:
                raise GenericError("Missing 'dir' property value")
            return None
        path = f"{folder}/{name}"
        try:
            os.stat(path)
        except FileNotFoundError as exc:
            if not required:
                return None
            raise _inaccessible(path, exc) from exc
        except OSError as exc:
            raise _inaccessible(path, exc) from exc
        return path

    def load_dh_params(self) -> str | None:
        """Check a server's Diffie-Hellman parameters, if it has any; their path. Errors: GenericError."""
        path = self.path(DH_PARAMS, required=False)
        if path is not None:
            data = read_file(path)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_dh_params(path)
            except (ssl.SSLError, OSError):
                raise GenericError(f"Unable to load DH parameters from {path}: {pem_fault(data)}") from None
        return path

    # -- contexts --------------------------------------------------------------------------------------------

    def new_context(self) -> ssl.SSLContext:
        """A context that verifies nobody yet, of the versions that ``priority`` allows. Errors: GenericError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        priority = self.options.priority
        if priority is not None:
            context.minimum_version, context.maximum_version = versions(priority)
        return context


def _inaccessible(path: str, exc: OSError) -> GenericError:
    return GenericError(f"Unable to access credentials {path}: {os_error_text(exc)}")


def read_file(path: str) -> bytes:
    """The contents of a file. Errors: GenericError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise _inaccessible(path, exc) from exc


def pem_fault(data: bytes) -> str:
    """Why *data*, which could not be read, is no PEM file of what it should hold, in GnuTLS's words."""
    return "ASN1 parser: Error in TAG." if _PEM.search(data) else "Base64 unexpected header error."


def versions(priority: str) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """The first and the last protocol version that a GnuTLS priority string allows.

    Only strings about versions can be followed, as the library below is another: ``NORMAL:-VERS-TLS1.3`` and the like.
    Errors: GenericError.
    """
    base, *changes = priority.split(":")
    allowed = {"VERS-TLS1.2", "VERS-TLS1.3"}
    for change in changes:
        sign, name = change[:1], change[1:]
        names = set(_VERSIONS) if name in ("VERS-ALL", "VERS-TLS-ALL") else {name}
        if sign not in ("+", "-", "!") or not names <= _VERSIONS.keys():
            raise _bad_priority(priority)
        allowed = allowed | names if sign == "+" else allowed - names
    places = [index for index, name in enumerate(_VERSIONS) if name in allowed]
    if base != "NORMAL" or not places or places[-1] - places[0] >= len(places):
        raise _bad_priority(priority)
    known = list(_VERSIONS.values())
    return known[places[0]], known[places[-1]]


def _bad_priority(priority: str) -> GenericError:
    return GenericError(f"Unable to set TLS session priority {priority}: only NORMAL with versions is supported")


def find_tls_creds(objects: Objects, id: str, endpoint: QCryptoTLSCredsEndpoint) -> TLSCreds:
    """The TLS credentials called *id*, for the side *endpoint*. Errors: GenericError."""
    found = objects.find(id)
    if found is None:
        raise GenericError(f"No TLS credentials with id '{id}'")
    if not isinstance(found, TLSCreds):
        raise GenericError(f"Object with id '{id}' is not TLS credentials")
    if found.is_server != (endpoint is QCryptoTLSCredsEndpoint.SERVER):
        raise GenericError(f"Expected TLS credentials for a {endpoint.value} endpoint")
    return found
