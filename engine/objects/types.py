"""All types of objects; a new one is a file and a line here."""

from engine.objects import (  # noqa: F401
    authz_list,
    authz_listfile,
    authz_pam,
    authz_simple,
    iothread,
    secret,
    secret_keyring,
    throttle_group,
    tls_anon,
    tls_psk,
    tls_x509,
)
