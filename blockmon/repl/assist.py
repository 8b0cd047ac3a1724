"""Completion and hints for what the prompt itself adds to the server's commands: `\\` commands, `$_`, pipes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples

from blockmon.lang import Form, classify
from blockmon.lang.answer_path import AnswerError, resolve
from blockmon.lang.pipes import find_pipe
from blockmon.model.format import safe_text
from blockmon.repl.context import LONGEST
from blockmon.repl.tables import summary

if TYPE_CHECKING:
    from blockmon.repl.completer import ReplCompleter
    from blockmon.repl.session import ReplSession

_OWN = re.compile(r"(?P<blank>[ \t]*)\\(?P<name>[\w?-]*)(?P<gap>[ \t]+)?(?P<argument>[^\n]*)\Z")
_REFERENCE = re.compile(r"(?P<path>\$_(?:\.[\w-]+|\[-?\d+\]|\[\"[^\"]*\"\])*?)(?P<last>[.\[][\w-]*)?\Z")

MOST_ELEMENTS = 50


class PromptCompleter(Completer):
    """Completes what is the prompt's own, and leaves the rest to the *inner* completer."""

    def __init__(self, session: ReplSession, inner: ReplCompleter) -> None:
        self._session = session
        self._inner = inner

    @property
    def unanswered(self) -> tuple[str, int] | None:
        """The text and cursor of the last request if nothing was found: names that come later may answer it."""
        return self._inner.unanswered

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Complete at once."""
        own = self._own(document)
        if own is None:
            yield from self._inner.get_completions(self._for_inner(document), complete_event)
        else:
            yield from own

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete without waiting for a slow disk on the event loop."""
        own = await self._own_async(document)
        if own is not None:
            for completion in own:
                yield completion
            return
        async for completion in self._inner.get_completions_async(self._for_inner(document), complete_event):
            yield completion

    def _for_inner(self, document: Document) -> Document:
        """The server's command alone: without `\\watch 2 ` in front, and without the pipe behind."""
        text, cursor = document.text, document.cursor_position
        if len(text) > LONGEST:
            return document
        start = _inner_start(text, cursor)
        end = text.find("\n", cursor) if start else len(text)
        text, cursor = text[start : end if end >= 0 else len(text)], cursor - start
        pipe = self._pipe(text)
        return Document(text if pipe is None else text[: max(pipe, cursor)], cursor)

    def _pipe(self, text: str) -> int | None:
        return find_pipe(text, brackets=classify(text, self._session.knowledge.schema.commands) is not Form.HMP)

    async def _own_async(self, document: Document) -> list[Completion] | None:
        before = document.current_line_before_cursor
        if "\\" in before:
            match = _OWN.match(before)
            if match is not None and match["gap"]:
                return await asyncio.to_thread(self._own, document)  # it may read a directory
        return self._own(document)

    def _own(self, document: Document) -> list[Completion] | None:
        """The completions that are the prompt's; None where it is for the server's commands to say."""
        before = document.text_before_cursor
        if len(before) > LONGEST:
            return []
        reference = _REFERENCE.search(before)
        if reference is not None and self._session.runner.has_answer:
            return list(self._members(reference))
        match = _OWN.match(document.current_line_before_cursor)
        if match is not None and _begins_statement(document):
            from blockmon.repl.commands import all_commands, lookup

            if not match["gap"]:
                return [
                    Completion(
                        name + (" " if command.usage else ""),
                        -len(match["name"]),
                        display="\\" + name,
                        display_meta=command.help,
                    )
                    for name, command in sorted(all_commands().items())
                    if name.startswith(match["name"].lower())
                ]
            found = lookup(match["name"])
            if found is None:
                return []
            if found.inner is not None and found.inner(match["argument"]) is not None:
                return None
            word = match["argument"].rpartition(" ")[2] if not found.files else match["argument"]
            return [
                Completion(text, -len(word), display=text, display_meta=meta)
                for text, meta in found.complete(self._session, match["argument"])
                if text.lower().startswith(word.lower())
            ]
        pipe = self._pipe(before.rpartition("\n")[2] if not before.lstrip().startswith("{") else before)
        return [] if pipe is not None else None

    def _members(self, reference: re.Match[str]) -> Iterator[Completion]:
        last = reference["last"] or ""
        try:
            value = resolve(reference["path"], self._session.runner.last())
        except AnswerError:
            return
        back = -len(last)
        if isinstance(value, dict) and last[:1] != "[":
            for name, item in value.items():
                text = f".{name}"
                if re.fullmatch(r"\.[A-Za-z_][\w-]*", text) and text.startswith(last):
                    yield Completion(text, back, display=text, display_meta=_short(item))
        elif isinstance(value, list) and last[:1] != ".":
            for index, item in enumerate(value[:MOST_ELEMENTS]):
                text = f"[{index}]"
                if text.startswith(last):
                    yield Completion(text, back, display=text, display_meta=_short(item))


def _short(value: object) -> str:
    if isinstance(value, (dict, list)):
        text = summary(value)
    else:
        text = safe_text(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= 40 else text[:39] + "…"


def _begins_statement(document: Document) -> bool:
    """Whether the cursor's line is not the continuation of the one before it."""
    row = document.cursor_position_row
    if row == 0:
        return True
    above = document.lines[:row]
    text = "\n".join(above)
    return not above[-1].endswith("\\") and text.count("{") <= text.count("}")


def _inner_start(text: str, cursor: int) -> int:
    """The offset where the server's command in the line of the cursor begins, behind a `\\` command that takes one."""
    begin = text.rfind("\n", 0, cursor) + 1
    match = _OWN.match(text[begin:cursor])
    if match is None or not match["gap"]:
        return 0
    from blockmon.repl.commands import lookup

    found = lookup(match["name"])
    inner = found.inner(match["argument"]) if found is not None and found.inner is not None else None
    return 0 if inner is None else begin + match.start("argument") + inner


def prompt_hint(session: ReplSession, text: str, cursor: int, width: int) -> StyleAndTextTuples | None:
    """The line to show under a command of the prompt's own; None for any other."""
    if "\\" not in text[:cursor] or len(text) > LONGEST:
        return None
    document = Document(text, cursor)
    match = _OWN.match(document.current_line_before_cursor)
    if match is None or not _begins_statement(document):
        return None
    from blockmon.repl.commands import lookup

    found = lookup(match["name"])
    if found is None:
        known = "\\help lists the prompt's own commands"
        return [("class:hint", known[:width])]
    inner = _inner_start(text, cursor)
    if inner:
        from blockmon.repl.hints import hint_for

        below = hint_for(text[inner:], cursor - inner, session.knowledge, width)
        if below:
            return below
    usage = f"\\{found.name} {found.usage}".rstrip()
    room = max(width - len(usage), 0)
    return [("class:hint.command", usage[:width]), ("class:hint", f" — {found.help}"[:room])]
