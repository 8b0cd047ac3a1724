"""The tree of objects as QOM shows it, as far as there is one: ``/objects`` and ``/machine``, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from engine.devices.qom import DeviceObject, MachineObject, find_devices, machine_tree
from engine.errors import DeviceNotFound, GenericError
from engine.objects.base import UserObject
from engine.objects.types import all_types
from engine.qapi import Struct, command

if TYPE_CHECKING:
    from engine.engine import Engine

_LOOP: Final = ("thread-pool-min", "aio-max-batch", "thread-pool-max")
_ABSTRACT: Final[dict[str, tuple[str | None, tuple[str, ...]]]] = {
    "object": (None, ()),
    "interface": (None, ()),
    "user-creatable": ("interface", ()),
    "authz": ("object", ()),
    "event-loop-base": ("object", _LOOP),
    "secret_common": ("object", ("iv", "keyid", "loaded", "format")),
    "tls-creds": ("object", ("endpoint", "dir", "verify-peer", "priority")),
}
"""Abstract types: parent, properties that all below have."""


class ObjectPropertyInfo(Struct):
    """A property of an object. type: ``child<T>`` for an object of the type T below this one."""

    name: str
    type: str
    description: str | None = None
    default_value: Any = None


class ObjectTypeInfo(Struct):
    """A type. abstract: there can be no objects of it. parent: the type it extends."""

    name: str
    abstract: bool | None = None
    parent: str | None = None


class Container:
    """The root, or ``/objects``."""

    def __init__(self, path: str, children: dict[str, Found]) -> None:
        self.path = path
        self.children = children

    @staticmethod
    def qom_name() -> str:
        return "container"

    def property_types(self) -> dict[str, str]:
        return {"type": "string"} | {name: f"child<{child.qom_name()}>" for name, child in self.children.items()}

    def get_property(self, name: str) -> Any:
        if name == "type":
            return "container"
        if name in self.children:
            return f"{self.path}/{name}"
        raise GenericError(f"Property 'container.{name}' not found")

    def set_property(self, name: str, value: Any, *, text: bool = False) -> None:
        self.get_property(name)
        raise GenericError(f"Property 'container.{name}' is not writable")


Found: TypeAlias = Container | UserObject | DeviceObject | MachineObject
"""What a path can lead to."""


def _root(engine: Engine) -> Container:
    objects = engine.objects
    below: dict[str, Found] = {}
    machine = machine_tree(engine.machine)
    if machine is not None:
        below["machine"] = machine
    if objects.has_container:
        below["objects"] = Container("/objects", {found.id: found for found in objects.all()})
    return Container("", below)


def _descend(start: Found, parts: list[str]) -> Found | None:
    current: Found | None = start
    for part in parts:
        current = None if current is None or isinstance(current, UserObject) else current.children.get(part)
    return current


def resolve(engine: Engine, path: str, *, tell_ambiguous: bool = False) -> Found:
    """What *path* means: from the root when it begins with a slash, else from anywhere. Errors: DeviceNotFound.

    tell_ambiguous: a path that means several is an error of its own.
    """
    root = _root(engine)
    parts = [part for part in path.split("/") if part]
    if path.startswith("/"):
        found = _descend(root, parts) or next(iter(find_devices(engine.machine, path)), None)
    else:
        starts = [root, *root.children.values(), *engine.objects.all()]
        every = [match for start in starts if (match := _descend(start, parts)) is not None]
        every += find_devices(engine.machine, path)
        if (tell_ambiguous and len(every) > 1) or not parts:
            if tell_ambiguous:
                raise GenericError(f"Path '{path}' is ambiguous")
            every = []
        found = every[0] if len(every) == 1 else None
    if found is None:
        raise DeviceNotFound(f"Device '{path}' not found")
    return found


@command(since="1.2", allow_preconfig=True)
def qom_list(engine: Engine, *, path: str) -> list[ObjectPropertyInfo]:
    """List the properties of an object; the objects below it are some of them.

    path: the object, ``/objects/ID`` or a part that is enough to find it
    """
    found = resolve(engine, path, tell_ambiguous=True)
    return [ObjectPropertyInfo(name=name, type=kind) for name, kind in found.property_types().items()]


@command(since="1.2", allow_preconfig=True)
def qom_get(engine: Engine, *, path: str, property: str) -> Any:
    """Tell the value of a property.

    path: the object
    property: name of the property
    """
    return resolve(engine, path).get_property(property)


@command(since="1.2", allow_preconfig=True)
def qom_set(engine: Engine, *, path: str, property: str, value: Any) -> None:
    """Set a property. A throttle group's ``limits`` that are not given stay.

    path: the object
    property: name of the property
    value: its new value
    """
    resolve(engine, path).set_property(property, value)


def _type_infos() -> dict[str, tuple[ObjectTypeInfo, tuple[str, ...]]]:
    """All types by their names, with the types above them."""
    found: dict[str, tuple[ObjectTypeInfo, tuple[str, ...]]] = {
        "container": (ObjectTypeInfo(name="container", parent="object"), ("object",))
    }
    for name, (parent, _) in _ABSTRACT.items():
        above = () if parent is None else (parent,)
        found[name] = (ObjectTypeInfo(name=name, abstract=True, parent=parent), above)
    for cls in all_types().values():
        info = ObjectTypeInfo(name=cls.qom_name(), parent=cls.ancestors[0])
        found[cls.qom_name()] = (info, (*cls.ancestors, "user-creatable", "interface"))
    return found


@command(since="1.1", allow_preconfig=True)
def qom_list_types(
    engine: Engine, *, implements: str | None = None, abstract: bool | None = None
) -> list[ObjectTypeInfo]:
    """List the types of objects.

    implements: only those that are, or extend, this type
    abstract: also those that objects can't be made of
    """
    return [
        info
        for name, (info, above) in _type_infos().items()
        if (abstract or not info.abstract) and (implements is None or implements == name or implements in above)
    ]


@command(since="2.12", allow_preconfig=True)
def qom_list_properties(engine: Engine, *, typename: str) -> list[ObjectPropertyInfo]:
    """List the properties that every object of a type has.

    typename: name of the type
    """
    found: dict[str, str] = {"type": "string"}
    cls = next((cls for cls in all_types().values() if cls.qom_name() == typename), None)
    if cls is not None:
        found = cls.property_types()
    elif typename in ("interface", "user-creatable"):
        raise GenericError("Parameter 'typename' expects a QOM type")
    elif typename in _ABSTRACT:
        example = next((cls for cls in all_types().values() if typename in cls.ancestors), None)
        known = example.property_types() if example is not None else {}
        found |= {name: known[name] for name in _ABSTRACT[typename][1]}
    elif typename != "container":
        raise DeviceNotFound(f"Class '{typename}' not found")
    return [ObjectPropertyInfo(name=name, type=kind) for name, kind in found.items()]
