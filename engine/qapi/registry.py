"""Commands and events: a command is a function whose signature is its schema."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, overload

from engine.errors import CommandNotFound, GenericError
from engine.qapi.docs import summary
from engine.qapi.features import Feature, Features, feature_list
from engine.qapi.output import to_wire
from engine.qapi.types import (
    REQUIRED,
    Member,
    Struct,
    Type,
    parse_type,
)
from engine.qapi.visit import Fields, arguments_from_wire, from_wire

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=type[Struct])

_CO_VARKEYWORDS = 0x08
_CO_COROUTINE = 0x80
Rewrite = Callable[[dict[str, Any]], dict[str, Any]]


class Command:
    """A command of the registry.

    name: on the wire. since: QEMU version. rewrite: turns an old form of the arguments into the documented one
    before they are checked. A function with a ``**`` parameter gets the arguments as they came, others than those
    declared included (``'gen': false`` in QEMU's schema); only that the required ones are there is checked.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        since: str | None,
        boxed: bool,
        features: Features,
        allow_oob: bool,
        allow_preconfig: bool,
        success_response: bool,
        rewrite: Rewrite | None,
    ) -> None:
        self.function = function
        self.name = name
        self.since = since
        self.boxed = boxed
        self.features: tuple[Feature, ...] = feature_list(features)
        self.allow_oob = allow_oob
        self.allow_preconfig = allow_preconfig
        self.success_response = success_response
        self._rewrite = rewrite
        self._is_async = bool(function.__code__.co_flags & _CO_COROUTINE)
        self._open = bool(function.__code__.co_flags & _CO_VARKEYWORDS)
        self._members: list[Member] | None = None
        self._boxed_type: type[Struct] | None = None
        self._fields = Fields(self._own_members, False)

    def __repr__(self) -> str:
        return f"<Command {self.name}>"

    @property
    def doc(self) -> str:
        """What the docstring says, without the lines about arguments."""
        return summary(self.function)

    @property
    def argument_type(self) -> type[Struct] | None:
        """The struct or union that holds the arguments of a boxed command."""
        if not self.boxed:
            return None
        if self._boxed_type is None:
            code = self.function.__code__
            parameter = code.co_varnames[1]
            found = parse_type(self.function.__annotations__[parameter], self.function.__module__)
            if not (isinstance(found, type) and issubclass(found, Struct)):
                raise TypeError(f"the argument of {self.name} is no struct or union")
            self._boxed_type = found
        return self._boxed_type

    @property
    def arguments(self) -> list[Member]:
        """The arguments in schema order (a union's: those of its base)."""
        boxed = self.argument_type
        return self._own_members() if boxed is None else boxed.qapi_members()

    def _own_members(self) -> list[Member]:
        if self._members is None:
            function = self.function
            code = function.__code__
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            defaults: dict[str, Any] = dict(function.__kwdefaults__ or {})
            positional: tuple[Any, ...] = function.__defaults__ or ()
            defaults.update(zip(names[code.co_argcount - len(positional) : code.co_argcount], positional, strict=True))
            notes = function.__annotations__
            if unannotated := [n for n in names[1:] if n not in notes]:
                raise TypeError(f"the argument {unannotated[0]!r} of {self.name} has no annotation")
            module = function.__module__
            self._members = [Member(function, n, notes[n], module, defaults.get(n, REQUIRED), False) for n in names[1:]]
        return self._members

    @property
    def returns(self) -> Type | None:
        """The type of the result, None for none."""
        annotation = self.function.__annotations__.get("return")
        if annotation is None or annotation == "None":
            return None
        return parse_type(annotation, self.function.__module__)

    def call(self, context: Any, arguments: Mapping[str, Any] | None = None) -> Any:
        """Check *arguments* (wire values), run the command, and return its result as a wire value.

        A command written as ``async def`` gives a coroutine of that. Raises QMPError.
        """
        given = arguments if type(arguments) is dict else _as_dict(arguments)
        if self._rewrite is not None:
            given = self._rewrite(dict(given))
        boxed = self.argument_type
        if boxed is not None:
            result = self.function(context, from_wire(boxed, given))
        elif self._open:
            for member in self._own_members():
                if not member.optional and member.name not in given:
                    raise GenericError(f"Parameter '{member.name}' is missing")
            result = self.function(context, **given)
        else:
            result = self.function(context, **arguments_from_wire(self._fields, given))
        if self._is_async:
            return _finish(result)
        return {} if result is None else to_wire(result)


def _as_dict(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise GenericError("QMP input member 'arguments' must be an object")
    return dict(arguments)


async def _finish(result: Awaitable[Any]) -> Any:
    value = await result
    return {} if value is None else to_wire(value)


class Registry:
    """All commands and events that an engine knows."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}
        self._events: dict[str, type[Struct]] = {}
        self.commands: Mapping[str, Command] = MappingProxyType(self._commands)
        self.events: Mapping[str, type[Struct]] = MappingProxyType(self._events)

    def command(
        self,
        name: str | None = None,
        *,
        since: str | None = None,
        boxed: bool = False,
        features: Features = (),
        allow_oob: bool = False,
        allow_preconfig: bool = False,
        success_response: bool = True,
        rewrite: Rewrite | None = None,
    ) -> Callable[[F], F]:
        """Make a function a command. Its first parameter is the context, the others are the arguments.

        name: the function's with dashes when not given. boxed: the one argument is a struct or union whose
        members are the wire arguments. Raises ValueError when the name is taken.
        """

        def register(function: F) -> F:
            wire = name if name is not None else function.__name__.replace("_", "-")
            old = self._commands.get(wire)
            if old is not None and old.function.__module__ != function.__module__:
                raise ValueError(f"the command {wire} exists already, in {old.function.__module__}")
            self._commands[wire] = Command(
                function,
                wire,
                since=since,
                boxed=boxed,
                features=features,
                allow_oob=allow_oob,
                allow_preconfig=allow_preconfig,
                success_response=success_response,
                rewrite=rewrite,
            )
            return function

        return register

    @overload
    def event(self, cls: S, /) -> S: ...

    @overload
    def event(self, name: str, /) -> Callable[[S], S]: ...

    def event(self, cls: S | str, /) -> S | Callable[[S], S]:
        """Make a struct the data of an event: ``@event`` (named by keyword or class) or ``@event(NAME)``."""
        if isinstance(cls, str):
            name = cls

            def register(struct: S) -> S:
                struct.EVENT = name
                return self._add_event(struct)

            return register
        return self._add_event(cls)

    def _add_event(self, cls: S) -> S:
        if not cls.__dict__.get("EVENT"):
            cls.EVENT = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).upper()
        self._events[cls.EVENT] = cls
        return cls

    def dispatch(self, context: Any, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run the command *name*; see ``Command.call``. Raises CommandNotFound and other QMPErrors."""
        found = self._commands.get(name)
        if found is None:
            raise CommandNotFound(f"The command {name} has not been found")
        return found.call(context, arguments)


registry = Registry()
"""The registry that modules of the engine fill when they are imported."""

command = registry.command
event = registry.event
dispatch = registry.dispatch
