"""What a run writes to stdout: the answers as text for people, or everything as lines of JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from blockmon.lang import ParsedHMP, ParsedQMP
from blockmon.replay.errors import OutputLost
from blockmon.replay.printed import printed
from blockmon.replay.watch import INTERNAL

if TYPE_CHECKING:
    from blockmon.replay.statements import Statement

Parsed = ParsedQMP | ParsedHMP


class Output(Protocol):
    """Takes what a run produces. What cannot be written raises OutputLost, at the latest in flush()."""

    def answer(self, statement: "Statement", parsed: Parsed | None, value: Any, text: str) -> None:
        """A command's value and its printed form; parsed is None for what @shell printed."""

    def failed(self, statement: "Statement", parsed: Parsed, cls: str, desc: str) -> None:
        """A command that failed, as @error may want it."""

    def echo(self, text: str) -> None:
        """A line of @echo."""

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Events, as they come."""

    def result(self, result: Mapping[str, Any]) -> None:
        """How a script ended."""

    def flush(self) -> None:
        """Whoever reads has to see everything now."""


class TextOutput:
    """The printed answers and the lines of @echo."""

    def __init__(self, stream: TextIO | None) -> None:
        """*stream* is None where Python found standard output closed."""
        self._stream = stream

    def _write(self, text: str) -> None:
        if self._stream is None:
            raise OutputLost("standard output: it is closed")
        try:
            self._stream.write(text + "\n")
        except OSError as error:
            raise OutputLost(f"standard output: {error.strerror}") from None

    def answer(self, statement: "Statement", parsed: Parsed | None, value: Any, text: str) -> None:
        if text:
            self._write(text)

    def failed(self, statement: "Statement", parsed: Parsed, cls: str, desc: str) -> None:
        pass

    def echo(self, text: str) -> None:
        self._write(text)

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        pass

    def result(self, result: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            raise OutputLost(f"standard output: {error.strerror}") from None


class JSONOutput(TextOutput):
    """One JSON object in a line for each answer, error, event and script.

    {"file", "line", "execute", "return"} or "error" {"class", "desc"} instead of "return"; "command-line" for HMP and
    "shell" for @shell instead of "execute". Events are as on the wire (so those that only tell our own screen
    something are left out). {"script", "status", "seconds", ...} ends each
    script. What @echo says goes to *narration*.
    """

    def __init__(self, stream: TextIO | None, narration: TextIO | None) -> None:
        super().__init__(stream)
        self._narration = narration
        self._lost = ""

    def _object(self, statement: "Statement", parsed: Parsed | None, more: Mapping[str, Any]) -> None:
        if isinstance(parsed, ParsedQMP):
            what = {"execute": parsed.command}
        elif parsed is not None:
            what = {"command-line": parsed.line}
        else:
            what = {"shell": statement.text.split(maxsplit=1)[1]}
        self._write(json.dumps({"file": statement.file, "line": statement.line, **what, **more}))

    def answer(self, statement: "Statement", parsed: Parsed | None, value: Any, text: str) -> None:
        self._object(statement, parsed, {"return": value})

    def failed(self, statement: "Statement", parsed: Parsed, cls: str, desc: str) -> None:
        self._object(statement, parsed, {"error": {"class": cls, "desc": desc}})

    def echo(self, text: str) -> None:
        if self._narration is not None:
            print(text, file=self._narration, flush=True)

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        try:
            for event in events:
                if event.get("event") not in INTERNAL:
                    self._write(json.dumps(event))
        except OutputLost as error:
            # Events come between statements, where nobody could catch this; the next flush tells it.
            self._lost = str(error)

    def result(self, result: Mapping[str, Any]) -> None:
        self._write(json.dumps(result))

    def flush(self) -> None:
        if self._lost:
            raise OutputLost(self._lost)
        super().flush()


class Held:
    """Keeps what is written until it is known whether it counts: @retry shows its last try only."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, tuple[Any, ...]]] = []

    def answer(self, statement: "Statement", parsed: Parsed | None, value: Any, text: str) -> None:
        self.kept.append(("answer", (statement, parsed, value, text)))

    def failed(self, statement: "Statement", parsed: Parsed, cls: str, desc: str) -> None:
        self.kept.append(("failed", (statement, parsed, cls, desc)))

    def echo(self, text: str) -> None:
        self.kept.append(("echo", (text,)))

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        self.kept.append(("events", (events,)))

    def result(self, result: Mapping[str, Any]) -> None:
        self.kept.append(("result", (result,)))

    def flush(self) -> None:
        pass

    def release(self, output: Output, *, only_events: bool = False) -> None:
        """Write what is kept to *output*."""
        for name, given in self.kept:
            if name == "events" or not only_events:
                getattr(output, name)(*given)
        self.kept.clear()


__all__ = ["Held", "JSONOutput", "Output", "OutputLost", "Parsed", "TextOutput", "printed"]
