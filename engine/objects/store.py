"""The objects of an engine, by id."""

from __future__ import annotations

from typing import TypeVar

from engine.errors import GenericError
from engine.names import ID_HINT, id_wellformed
from engine.objects.base import ObjectOptions, UserObject, types
from engine.throttle.group import ThrottleGroups

_O = TypeVar("_O", bound=UserObject)


class Objects:
    """All objects. Control plane; find() and get() may be called in any thread."""

    def __init__(self) -> None:
        self.throttle_groups = ThrottleGroups()
        self.has_container = False
        """There was an object once, so ``/objects`` is there."""
        self._objects: dict[str, UserObject] = {}

    def all(self) -> list[UserObject]:
        """The objects, oldest first."""
        return list(self._objects.values())

    def add(self, options: ObjectOptions) -> UserObject:
        """Make an object. Errors: GenericError; nothing has changed then."""
        if not id_wellformed(options.id):
            raise GenericError("Parameter 'id' expects an identifier", hint=ID_HINT)
        cls = types[options.qom_type]
        found = cls(self, options.id, options.branch)
        if options.id in self._objects:
            raise GenericError(f"attempt to add duplicate property '{options.id}' to object (type 'container')")
        self.has_container = True
        found.complete()
        self._objects[options.id] = found
        return found

    def delete(self, id: str) -> None:
        """Delete an object. Errors: GenericError (unknown, in use)."""
        found = self._objects.get(id)
        if found is None:
            raise GenericError(f"object '{id}' not found")
        if found.in_use and not found.deletable_in_use:
            raise GenericError(f"object '{id}' is in use, can not be deleted")
        del self._objects[id]
        found.close()

    def find(self, id: str) -> UserObject | None:
        """The object called *id*, or None."""
        return self._objects.get(id)

    def get(self, id: str, cls: type[_O]) -> _O | None:
        """The object called *id* if it is of the type *cls*, else None. Modules of types have lookups that raise."""
        found = self._objects.get(id)
        return found if isinstance(found, cls) else None

    def close(self) -> None:
        """Close all objects, the newest first."""
        while self._objects:
            self._objects.popitem()[1].close()
