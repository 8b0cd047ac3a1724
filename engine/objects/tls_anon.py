"""tls-creds-anon: encryption without knowing who the peer is."""

from __future__ import annotations

import ssl
from typing import Annotated

from engine.errors import GenericError
from engine.objects.base import user_creatable
from engine.objects.tls import TLSCreds, TlsCredsProperties
from engine.qapi import Feature


class TlsCredsAnonProperties(TlsCredsProperties):
    """No options of its own."""

    loaded: Annotated[bool | None, Feature("deprecated")] = None


@user_creatable
class TLSCredsAnon(TLSCreds):
    """Anonymous credentials. A server may have Diffie-Hellman parameters in ``dh-params.pem``."""

    type_name = "tls-creds-anon"
    Options = TlsCredsAnonProperties
    properties = ("endpoint", "dir", "verify-peer", "priority", "loaded")

    def load(self) -> None:
        self._dh_params = self.load_dh_params() if self.is_server else None

    def context(self) -> ssl.SSLContext:
        context = self.new_context()
        # There are no anonymous key exchanges any more in TLS 1.3, and OpenSSL wants to be urged in 1.2.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.set_ciphers("aNULL:@SECLEVEL=0")
            if self._dh_params is not None:
                context.load_dh_params(self._dh_params)
        except ssl.SSLError as exc:
            raise GenericError(f"Anonymous TLS is not possible with this OpenSSL: {exc}") from exc
        return context
