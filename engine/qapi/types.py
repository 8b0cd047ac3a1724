"""Declaring QAPI types by annotations: structs, enums, unions, alternates, integers, features.

Nothing is resolved when a class is made; annotations become ``Member`` lists on first use, so that types may refer
to each other and modules load quickly.
"""

from __future__ import annotations

import enum
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, TypeAlias, dataclass_transform

from engine.qapi.builtin import ANY, BY_PYTHON_TYPE, STR, Builtin
from engine.qapi.features import Feature, Features, Wire, feature_list
from engine.qapi.tags import TagEnum, tag_enum


class Enum(enum.StrEnum):
    """Base of enumerations; the values are the wire strings.

    A class attribute ``__features__`` may map wire strings to the features of single values (a ``Features`` each).
    """

    @classmethod
    def value_features(cls, value: str) -> tuple[Feature, ...]:
        """Return the features of the wire string *value*."""
        return feature_list(cls.__dict__.get("__features__", {}).get(value, ()))


class Array:
    """The type of a list of *element*."""

    __slots__ = ("element",)

    def __init__(self, element: Type) -> None:
        self.element = element

    def __repr__(self) -> str:
        return f"[{self.element!r}]"


class Alternate:
    """A type told by the JSON type of the value, written inside Annotated.

    ``ARef: TypeAlias = Annotated[A | str, Alternate("ARef", definition=A, reference=str)]``.
    Branch types may be names of structs (strings), for types declared later.
    """

    def __init__(self, name: str, /, features: Features = (), **branches: Any) -> None:
        self.name = name
        self.features = feature_list(features)
        self._declared = branches
        self._branches: dict[str, Type] | None = None

    @property
    def branches(self) -> dict[str, Type]:
        """The branch types by branch name."""
        if self._branches is None:
            self._branches = {
                name: _struct_named(tp) if isinstance(tp, str) else parse_type(tp, __name__)
                for name, tp in self._declared.items()
            }
        return self._branches

    def __repr__(self) -> str:
        return f"Alternate({self.name!r})"


class Member:
    """A member of a struct or an argument of a command.

    name: on the wire. attr: in Python. default: what an absent optional member reads as. The type is found on
    first use, since it may be declared later than the member.
    """

    __slots__ = ("_annotation", "_features", "_module", "_name", "_optional", "_type", "attr", "default", "owner")

    def __init__(self, owner: Any, attr: str, annotation: Any, module: str, default: Any, underscores: bool) -> None:
        self.owner = owner
        self.attr = attr
        self.default = default
        self._annotation = annotation
        self._module = module
        self._optional = default is not REQUIRED
        bare = attr.rstrip("_")
        self._name = bare if underscores else bare.replace("_", "-")
        self._type: Type | None = None
        self._features: tuple[Feature, ...] = ()

    def _resolve(self) -> Type:
        parsed = parse_annotation(self._annotation, self._module)
        if parsed.wire is not None:
            self._name = parsed.wire
        self._optional = self._optional or parsed.optional
        self._features = parsed.features
        self._type = parsed.type
        return parsed.type

    @property
    def type(self) -> Type:
        """What the member holds."""
        return self._type if self._type is not None else self._resolve()

    @property
    def name(self) -> str:
        """The member's name on the wire."""
        if self._type is None:
            self._resolve()
        return self._name

    @property
    def optional(self) -> bool:
        """Whether the member may be absent."""
        if self._type is None:
            self._resolve()
        return self._optional

    @property
    def features(self) -> tuple[Feature, ...]:
        """The member's features."""
        if self._type is None:
            self._resolve()
        return self._features

    @property
    def doc(self) -> str:
        """What the owner's docstring says about the member, or ''."""
        from engine.qapi.docs import member_docs

        docs = member_docs(self.owner)
        return docs.get(self.attr) or docs.get(self.name) or ""

    def __repr__(self) -> str:
        return f"{'*' if self.optional else ''}{self.name}: {self.type!r}"


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()
"""Default of a member that must be given."""

# For references across modules that do not import each other. None: there are several of the name.
_struct_names: dict[str, type[Struct] | None] = {}


def _struct_named(name: str) -> type[Struct]:
    found = _struct_names.get(name)
    if found is None:
        raise TypeError(f"there is {'more than one' if name in _struct_names else 'no'} struct called {name}")
    return found


@dataclass_transform(kw_only_default=True)
class Struct:
    """Base of structs: annotate the members, ``foo_bar: int`` is ``"foo-bar"`` on the wire.

    A member with a default (or ``| None``) is optional. A trailing underscore is dropped (``from_``). A subclass has
    its base's members first. Class keywords: underscores=True keeps the underscores of this class's own members on
    the wire; name= is an event's name; features= are the type's features.
    """

    EVENT: ClassVar[str] = ""
    """Name of the event, for classes registered as one."""

    __qapi_features__: ClassVar[tuple[Feature, ...]] = ()
    __qapi_underscores__: ClassVar[bool] = False
    __qapi_members__: ClassVar[list[Member]]
    __qapi_init__: ClassVar[tuple[frozenset[str], frozenset[str]]]
    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(
        cls, *, name: str | None = None, underscores: bool = False, features: Features = (), **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.__qapi_underscores__ = underscores
        cls.__qapi_features__ = feature_list(features)
        if name is not None:
            cls.EVENT = name
        known = _struct_names.get(cls.__name__)
        _struct_names[cls.__name__] = cls if known is None or known.__module__ == cls.__module__ else None

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        required, known = cls.__dict__.get("__qapi_init__") or cls._init_names()
        if not required <= values.keys() <= known:
            for member in self.qapi_members():
                if member.attr not in values and member.default is REQUIRED:
                    raise TypeError(f"{cls.__name__}() lacks the member {member.attr!r}")
            raise TypeError(f"{cls.__name__}() has no member {next(key for key in values if key not in known)!r}")
        self.__dict__.update(values)

    @classmethod
    def _init_names(cls) -> tuple[frozenset[str], frozenset[str]]:
        """The members that have to be given, and all; a struct is made for every row of an answer."""
        members = cls.qapi_members()
        required = frozenset(member.attr for member in members if member.default is REQUIRED)
        found = cls.__qapi_init__ = (required, frozenset(member.attr for member in members))
        return found

    @classmethod
    def qapi_members(cls) -> list[Member]:
        """Return the members in wire order, the base's first (for a union: without the branch's)."""
        found = cls.__dict__.get("__qapi_members__")
        if found is None:
            found = cls.__qapi_members__ = cls._collect_members()
        return typing.cast("list[Member]", found)

    @classmethod
    def _collect_members(cls) -> list[Member]:
        members: dict[str, Member] = {}
        for base in reversed(cls.__mro__):
            if not issubclass(base, Struct) or base is Struct or base is Union:
                continue
            for attr, annotation in base.__annotations__.items():
                if attr.startswith("_") or _is_class_var(annotation):
                    continue
                default = getattr(cls, attr, REQUIRED)
                members[attr] = Member(base, attr, annotation, base.__module__, default, base.__qapi_underscores__)
        return list(members.values())

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, m.attr) == getattr(other, m.attr) for m in self.qapi_members())

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{m.attr}={value!r}" for m in self.qapi_members() if (value := getattr(self, m.attr, None)) is not None
        )
        return f"{type(self).__name__}({shown})"


class Union(Struct):
    """Base of discriminated unions: ``class X(Union, tag="driver", tag_enum="XDriver")``; own annotations are the base.

    tag: attribute name of the discriminator. It is a ``str`` unless tag_enum (or the tag's own annotation) is an
    ``Enum`` class. ``branch`` holds the members of the chosen branch.
    """

    branch: Any = None
    """The branch's struct; an empty ``Struct`` where the branch has no members."""

    __qapi_tag__: ClassVar[str] = ""
    __qapi_tag_type__: ClassVar[TagEnum | type[Enum] | None] = None
    __qapi_branches__: ClassVar[dict[str, type[Struct]]] = {}

    def __init_subclass__(
        cls,
        *,
        tag: str | None = None,
        tag_enum: str | type[Enum] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if tag is None:
            return
        cls.__qapi_tag__ = tag
        cls.__qapi_branches__ = {}
        if isinstance(tag_enum, type):
            cls.__qapi_tag_type__ = tag_enum
        elif tag_enum is not None:
            cls.__qapi_tag_type__ = globals()["tag_enum"](tag_enum)

    def __init__(self, **values: Any) -> None:
        branch = values.pop("branch", None)
        super().__init__(**values)
        if branch is None:
            branch = self.qapi_branch_type(str(getattr(self, self.__qapi_tag__)))()
        self.__dict__["branch"] = branch

    @classmethod
    def add_branch(
        cls, value: str, struct: type[Struct], *, features: Features = (), since: str | None = None, wrap: str = ""
    ) -> None:
        """Add a branch: tag *value* has the members of *struct* (directly, or inside one member called *wrap*)."""
        if value in cls.__qapi_branches__:
            raise ValueError(f"{cls.__name__} has a branch {value!r} already")
        if wrap:
            struct = type(f"{struct.__name__}Wrapper", (Struct,), {"__annotations__": {wrap: struct}})
        cls.__qapi_branches__[value] = struct
        tag_type = cls.qapi_tag_type()
        if isinstance(tag_type, TagEnum):
            given = feature_list(features)
            if given or value not in tag_type.values:
                tag_type.values[value] = given
            if since is not None:
                tag_type.since[value] = since

    @classmethod
    def qapi_tag_name(cls) -> str:
        """Return the attribute name of the discriminator."""
        return cls.__qapi_tag__

    @classmethod
    def qapi_tag_type(cls) -> TagEnum | type[Enum]:
        """Return the discriminator's enumeration."""
        found = cls.__qapi_tag_type__
        if found is None:
            annotation = _find_annotation(cls, cls.__qapi_tag__)
            parsed = parse_annotation(annotation[0], annotation[1]).type if annotation else STR
            if isinstance(parsed, type) and issubclass(parsed, Enum):
                found = parsed
            else:
                found = tag_enum(f"{cls.__name__}Kind")
            cls.__qapi_tag_type__ = found
        return found

    @classmethod
    def qapi_branches(cls) -> Mapping[str, type[Struct]]:
        """Return the branches that have members, by tag value."""
        tag_type = cls.qapi_tag_type()
        if isinstance(tag_type, TagEnum):
            tag_type.load()
        return cls.__qapi_branches__

    @classmethod
    def qapi_branch_type(cls, value: str) -> type[Struct]:
        """Return the struct of the branch *value*: ``Struct`` itself when it has no members."""
        found = cls.__qapi_branches__.get(value)
        if found is not None:
            return found
        tag_type = cls.qapi_tag_type()
        if isinstance(tag_type, TagEnum):
            tag_type.load(value)
        return cls.__qapi_branches__.get(value, Struct)

    @classmethod
    def _collect_members(cls) -> list[Member]:
        members = super()._collect_members()
        tag = cls.__qapi_tag__
        annotation = Annotated[str, cls.qapi_tag_type()]
        for i, member in enumerate(members):
            if member.attr == tag:
                parsed = parse_annotation(member._annotation, member._module)
                if not (isinstance(parsed.type, type) and issubclass(parsed.type, Enum)):
                    members[i] = Member(cls, tag, annotation, cls.__module__, REQUIRED, False)
                break
        else:
            members.insert(0, Member(cls, tag, annotation, cls.__module__, REQUIRED, False))
        return members

    def __eq__(self, other: object) -> bool:
        same = super().__eq__(other)
        return same if same is not True else bool(self.branch == typing.cast("Union", other).branch)

    def __repr__(self) -> str:
        shown = super().__repr__()
        return shown if type(self.branch) is Struct else f"{shown[:-1]}, branch={self.branch!r})"


Type: TypeAlias = "Builtin | Array | Alternate | TagEnum | type[Enum] | type[Struct]"
"""A resolved type of the language."""


class ParsedAnnotation(typing.NamedTuple):
    """What an annotation says: the type, whether it may be absent, its name on the wire, its features."""

    type: Type
    optional: bool
    wire: str | None
    features: tuple[Feature, ...]


def _is_class_var(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith(("ClassVar", "typing.ClassVar"))
    return typing.get_origin(annotation) is ClassVar or annotation is ClassVar


def _find_annotation(cls: type, attr: str) -> tuple[Any, str] | None:
    for base in cls.__mro__:
        found = base.__annotations__.get(attr) if issubclass(base, Struct) else None
        if found is not None:
            return found, base.__module__
    return None


class _KnownTypes(dict[str, Any]):
    """Names to fall back on where a module does not import the type it speaks of (circular imports)."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        super().__init__()
        self._module = module

    def __missing__(self, name: str) -> Any:
        if name not in self._module and name in _struct_names:
            return _struct_named(name)
        raise KeyError(name)


def _evaluate(expression: str, module: str) -> Any:
    namespace = vars(sys.modules[module])
    try:
        return eval(expression, namespace, _KnownTypes(namespace))
    except NameError as exc:
        raise TypeError(f"cannot resolve the annotation {expression!r} of {module}: {exc}") from None


def parse_annotation(annotation: Any, module: str) -> ParsedAnnotation:
    """Resolve *annotation*, written in *module*. Raises TypeError for what is no QAPI type."""
    optional = False
    wire: str | None = None
    features: list[Feature] = []
    tp = annotation
    while True:
        if isinstance(tp, str):
            tp = _evaluate(tp, module)
            continue
        if isinstance(tp, typing.ForwardRef):
            tp = _evaluate(tp.__forward_arg__, module)
            continue
        if isinstance(tp, (Builtin, Array, Alternate, TagEnum)):
            return ParsedAnnotation(tp, optional, wire, tuple(features))
        builtin = BY_PYTHON_TYPE.get(tp)
        if builtin is not None:
            return ParsedAnnotation(builtin, optional, wire, tuple(features))
        if isinstance(tp, type) and issubclass(tp, (Struct, Enum)):
            return ParsedAnnotation(tp, optional, wire, tuple(features))
        origin = typing.get_origin(tp)
        if origin is Annotated:
            override: Any = None
            for extra in tp.__metadata__:
                if isinstance(extra, Wire):
                    wire = extra.name
                elif isinstance(extra, Feature):
                    features.append(extra)
                elif isinstance(extra, (Builtin, Alternate, TagEnum)) or (
                    isinstance(extra, type) and issubclass(extra, Enum)
                ):
                    override = extra
            inner = tp.__origin__
            if override is not None:
                optional = optional or _admits_none(inner, module)
                tp = override
            else:
                tp = inner
            continue
        if origin is list:
            return ParsedAnnotation(Array(parse_type(tp.__args__[0], module)), optional, wire, tuple(features))
        if origin is dict or tp is dict or tp is list:
            return ParsedAnnotation(ANY, optional, wire, tuple(features))
        if origin is typing.Union or origin is types.UnionType:
            rest = [arg for arg in tp.__args__ if arg is not type(None)]
            if len(rest) != 1 or len(rest) == len(tp.__args__):
                raise TypeError(f"{annotation!r} in {module} needs an Alternate to tell its types apart")
            optional = True
            tp = rest[0]
            continue
        raise TypeError(f"{annotation!r} in {module} is no type of the schema")


def _admits_none(tp: Any, module: str) -> bool:
    if isinstance(tp, str):
        tp = _evaluate(tp, module)
    return type(None) in typing.get_args(tp)


def parse_type(annotation: Any, module: str) -> Type:
    """Resolve *annotation* to its type alone."""
    return parse_annotation(annotation, module).type
