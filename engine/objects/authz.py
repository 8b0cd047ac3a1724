"""Authorisation: who may connect. identity is a user's name or a certificate's distinguished name."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.objects.base import UserObject

if TYPE_CHECKING:
    from engine.objects.store import Objects


class Authz(UserObject, abc.ABC):
    """A rule about identities. is_allowed() may be called in any thread."""

    ancestors = ("authz", "object")

    @abc.abstractmethod
    def is_allowed(self, identity: str) -> bool:
        """Whether *identity* may. Errors: GenericError (it can't be told)."""


def find_authz(objects: Objects, id: str) -> Authz:
    """The authorisation called *id*. Errors: GenericError."""
    found = objects.find(id)
    if found is None:
        raise GenericError(f"Cannot find QAuthZ object ID {id}")
    if not isinstance(found, Authz):
        raise GenericError(f"Object '{id}' is not a QAuthZ subclass")
    return found
