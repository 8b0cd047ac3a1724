"""Whatever is put together from what the prompt offers is a command that the engine's schema accepts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document

from blockmon.lang import ParsedQMP, parse_input
from blockmon.model.schema import value_at
from blockmon.repl.completer import ReplCompleter
from blockmon.repl.context import Kind, Spot, spot_at
from blockmon.repl.knowledge import Knowledge
from blockmon.replay.check import check
from engine.engine import Engine
from engine.qapi import introspect
from engine.qapi.registry import registry
from engine.qapi.visit import arguments_from_wire, from_wire
from tests.blockmon.repl.fakes import Server, knowledge_of

LONGEST = 60
"""So many completions make a command, before only what is required is taken."""


@pytest.fixture(scope="module")
def schema() -> Iterator[list[dict[str, Any]]]:
    engine = Engine()
    yield introspect()
    engine.close()


@pytest.fixture
async def knowledge(schema: list[dict[str, Any]]) -> Knowledge:
    server = Server(hmp=False)
    server.schema = schema
    return await knowledge_of(server)


class Writer:
    """Writes a command by taking what is offered, at random."""

    def __init__(self, knowledge: Knowledge, seed: int) -> None:
        self.knowledge = knowledge
        self.completer = ReplCompleter(knowledge)
        self.random = random.Random(seed)
        self.text = ""
        self.steps = 0

    def offers(self) -> list[Completion]:
        document = Document(self.text, len(self.text))
        return list(self.completer.get_completions(document, CompleteEvent()))

    def take(self, completion: Completion) -> None:
        self.text = self.text[: len(self.text) + completion.start_position] + completion.text
        self.steps += 1

    def spot(self) -> Spot:
        return spot_at(self.text, len(self.text), self.knowledge.schema.commands)

    def invent(self, spot: Spot) -> None:
        """A value where nothing is offered: a new name, or a number."""
        kinds = {info.kind for info in self.knowledge.schema.infos_at(spot.command, spot.path, spot.arguments)}
        json = spot.json
        if "array" in kinds:
            self.text += "]" if json and not spot.quote else "[]"
        elif kinds & {"int", "number"}:
            self.text += str(self.random.choice((0, 1, 7)))
        elif spot.quote:
            self.text += f"x{spot.quote}"
        else:
            self.text += '"x"' if json else "x"

    def value(self, offers: list[Completion], spot: Spot) -> None:
        nested = [c for c in offers if c.text.startswith(("{", "["))]
        plain = [c for c in offers if c not in nested]
        if self.steps > LONGEST and plain:
            offers = plain
        if not offers:
            self.invent(spot)
        else:
            self.take(self.random.choice(offers))

    def lacks(self, spot: Spot) -> list[str]:
        given = value_at(spot.arguments, spot.path)
        members = self.knowledge.schema.members_at(spot.command, spot.path, spot.arguments)
        return [
            i.name for i in members if not i.optional and i.name not in (given if isinstance(given, Mapping) else {})
        ]

    # The forms -------------------------------------------------------------------------------------------------------

    def json(self, command: str) -> str:
        self.text = f'{{"execute": "{command}"'
        while self.steps < 400:
            spot, offers = self.spot(), self.offers()
            if spot.kind is Kind.NOTHING:
                return self.text
            if spot.kind in (Kind.VALUE, Kind.COMMAND) and not spot.whole:
                self.value(offers, spot)
                continue
            if spot.whole:
                offers = [c for c in offers if c.text[len(spot.word) :][:1] in ",}]"]
            assert offers, self.text
            required = [c for c in offers if c.style]
            closing = [c for c in offers if c.text.removeprefix(spot.word).startswith(("}", "]"))]
            if required:
                assert not closing, f"may end before it is complete: {self.text}"
                self.take(required[0])
            elif closing and (self.steps > LONGEST or self.random.random() < 0.4):
                self.take(self.random.choice(closing))
            else:
                self.take(self.random.choice([c for c in offers if '"id"' not in c.text]))
        raise AssertionError(f"does not end: {self.text}")

    def shell(self, command: str) -> str:
        """A line of pairs, the required ones of the outermost level first."""
        self.text = command
        pending: list[str] = [""]
        for _ in range(300):
            prefix = pending[-1]
            self.text += " " + prefix
            spot, offers = self.spot(), self.offers()
            keys = [c for c in offers if c.text.endswith(("=", ".", "={}"))]
            required = [c for c in keys if c.style]
            if (
                not required
                and (not keys or self.steps > LONGEST or self.random.random() < 0.5)
                and not self.lacks(spot)
            ):
                self.text = self.text[: -len(prefix) - 1]
                pending.pop()
                if not pending:
                    return self.text
                continue
            assert keys, self.text
            chosen = self.random.choice(required or keys)
            inner = chosen.text.endswith(".")
            self.take(chosen)
            if inner:
                self.text = self.text[: -len(prefix) - len(chosen.text) - 1]
                pending.append(prefix + chosen.text)
                continue
            if chosen.text.endswith("={}"):
                continue
            value_spot, values = self.spot(), self.offers()
            self.value(values, value_spot)
        raise AssertionError(f"does not end: {self.text}")


def write_all(knowledge: Knowledge, form: str, wanted: Callable[[str], bool]) -> list[str]:
    """A few lines of every command, many of those that have the most to offer."""
    found = []
    for number, command in enumerate(sorted(filter(wanted, knowledge.schema.commands))):
        for seed in range(40 if command in ("blockdev-add", "transaction", "blockdev-reopen") else 4):
            found.append(getattr(Writer(knowledge, number * 100 + seed), form)(command))
    assert len(found) > 300
    return found


def accept(text: str, knowledge: Knowledge) -> None:
    """Have the engine check the arguments of the command *text*, as it does before it runs one."""
    schema = knowledge.schema
    parsed = parse_input(text, schema.commands, schema.arguments_of)
    assert isinstance(parsed, ParsedQMP), text
    command = registry.commands[parsed.command]
    boxed = command.argument_type
    try:
        if boxed is not None:
            from_wire(boxed, parsed.arguments)
        elif not command._open:
            arguments_from_wire(command._fields, parsed.arguments)
    except Exception as error:
        raise AssertionError(f"{text}\n{error}") from None


@pytest.mark.parametrize("form", ["json", "shell"])
async def test_what_is_put_together_from_offers_is_accepted(knowledge: Knowledge, form: str) -> None:
    for text in write_all(knowledge, form, lambda name: name in registry.commands):
        accept(text, knowledge)


@pytest.mark.parametrize("form", ["json", "shell"])
async def test_it_fits_the_schema_of_a_real_daemon_too(form: str) -> None:
    knowledge = await knowledge_of(Server(hmp=False, graph=False))
    schema = knowledge.schema
    for text in write_all(knowledge, form, lambda name: True):
        parsed = parse_input(text, schema.commands, schema.arguments_of)
        assert isinstance(parsed, ParsedQMP), text
        assert list(check(schema, parsed)) == [], text
