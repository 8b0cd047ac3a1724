"""authz-simple: one identity may."""

from __future__ import annotations

from engine.objects.authz import Authz
from engine.objects.base import user_creatable
from engine.qapi import Struct


class AuthZSimpleProperties(Struct):
    """identity: who may."""

    identity: str


@user_creatable
class AuthzSimple(Authz):
    """Allows one identity and no other."""

    type_name = "authz-simple"
    Options = AuthZSimpleProperties
    properties = ("identity",)
    options: AuthZSimpleProperties

    def is_allowed(self, identity: str) -> bool:
        return identity == self.options.identity
