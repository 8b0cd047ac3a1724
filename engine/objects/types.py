"""All types of objects, by name; a new one is a file and a line here. A type's module is loaded when it is needed."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Final

from engine.objects.base import UserObject, types
from engine.qapi import tag_enum

_MODULES: Final = {
    "authz-list": "authz_list",
    "authz-listfile": "authz_listfile",
    "authz-pam": "authz_pam",
    "authz-simple": "authz_simple",
    "iothread": "iothread",
    "secret": "secret",
    "secret_keyring": "secret_keyring",
    "throttle-group": "throttle_group",
    "tls-creds-anon": "tls_anon",
    "tls-creds-psk": "tls_psk",
    "tls-creds-x509": "tls_x509",
}

for _name, _module in _MODULES.items():
    if _name not in types:
        tag_enum("ObjectType").announce(_name, partial(import_module, f"engine.objects.{_module}"))


def all_types() -> dict[str, type[UserObject]]:
    """Every type by its name in object-add."""
    tag_enum("ObjectType").load()
    return types
