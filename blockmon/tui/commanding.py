"""Commands that the screen writes and runs: the menu of actions, the palette, the question before harm is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen

from blockmon.backend import CommandError
from blockmon.backend.read_only import why_refused
from blockmon.lang import ParsedQMP, ParseError, parse_input
from blockmon.model.format import safe_text
from blockmon.model.refresher import BitmapState
from blockmon.themes import theme_names
from blockmon.tui.actions import NODE_ACTIONS, Choice, choices, possible
from blockmon.tui.bars import HeaderBar, key_name
from blockmon.tui.confirm import EDIT, RUN, ConfirmPopup
from blockmon.tui.hazard import hazard
from blockmon.tui.look import Look
from blockmon.tui.node_actions import QUERY_OPTIONS, with_options
from blockmon.tui.palette import PaletteItem, PalettePopup, describe, template
from blockmon.tui.popups import ActionsPopup, Popup
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import JobSubject, NodeSubject, ParentSubject, Subject
from blockmon.tui.themed import ThemedApp

if TYPE_CHECKING:
    from blockmon.backend import Backend
    from blockmon.model.refresher import ScreenState
    from blockmon.options import CommonOptions
    from blockmon.repl.session import ReplSession
    from blockmon.tui.inspector import InspectorPane
    from blockmon.tui.prompt_pane import PromptPane


_NOT_SENT = "read-only: not sent"
_LISTED = 6
"""So many names are told of things under way."""


class CommandingApp(ThemedApp):
    """An application whose keys, menus and palette write commands into its prompt."""

    backend: Backend
    state: ScreenState
    session: ReplSession
    options: CommonOptions
    header: HeaderBar
    prompt: PromptPane
    inspector: InspectorPane
    _written: str | None = None
    """The name of the command that stands in the prompt because the screen has written it."""

    def selection(self) -> Subject | None:
        """What the focused pane has selected."""
        raise AssertionError

    def action_pane(self, name: str) -> None:
        """Turn to a pane."""
        raise AssertionError

    # Into the prompt.

    def write_command(self, text: str, cursor: int | None = None) -> None:
        """Put a command into the prompt, and turn to it. The cursor stands at its end, or where a value is missing."""
        if cursor is None:
            gap = next((place for place in range(len(text)) if text.startswith("= ", place)), None)
            cursor = len(text) if gap is None else gap + 1
        self._written = text.split(" ", 1)[0]
        self.action_pane("prompt")
        self.prompt.set_input(text, cursor)

    def choose(self, choice: Choice) -> None:
        """Write an action's command into the prompt; ask first whether to run it, where it does harm."""
        if choice.word == "blockdev-reopen" and QUERY_OPTIONS in self.state.commands:
            self.run_worker(self._reopen(choice), group="reopen", exclusive=True)
        else:
            self._offer(choice)

    async def _reopen(self, choice: Choice) -> None:
        """Have a reopen keep the options that its node was opened with."""
        parsed = self._parsed(choice.command)
        given = parsed.arguments["options"][0] if parsed is not None else {}
        try:
            options = await self.backend.execute(QUERY_OPTIONS, {"node-name": given["node-name"]})
        except (CommandError, KeyError, OSError) as error:
            self.header.say(f"its options are not known: {getattr(error, 'desc', error)}", error=True)
            return
        self._offer(dataclasses.replace(choice, command=with_options(choice.command, given, options)))

    def _offer(self, choice: Choice) -> None:
        refused = self._refused(choice.word)
        reason = self.harm(choice.command) if choice.complete and not refused else None
        if reason is None:
            self.write_command(choice.command)
            if refused:
                self.header.say(f"{_NOT_SENT}; --rw allows it")
            return

        def answered(answer: str | None) -> None:
            if answer == RUN:
                self.action_pane("prompt")
                self.prompt.run_line(choice.command)
            elif answer == EDIT:
                self.write_command(choice.command)
                # Whoever edits it has seen what it does; a truncated size and the like are asked about again.
                self._written = None if self.harm(choice.command) == reason else self._written

        self.push_screen(ConfirmPopup(self.look, "Run this?", choice.command, [f"It {reason}."]), answered)

    def _refused(self, command: str) -> bool:
        """Whether the server is only looked at, and *command* not for looking."""
        return self.session.knowledge.read_only and why_refused(command) is not None

    def harm(self, text: str) -> str | None:
        """What a line destroys if it is run; None where it does no harm, or is no QMP command."""
        parsed = self._parsed(text)
        return hazard(self.state, parsed.command, parsed.arguments) if parsed is not None else None

    def _parsed(self, text: str) -> ParsedQMP | None:
        schema = self.session.knowledge.schema
        try:
            parsed = parse_input(text, schema.commands or self.state.commands, schema.arguments_of)
        except ParseError:
            return None
        return parsed if isinstance(parsed, ParsedQMP) else None

    def keep_at_prompt(self, text: str) -> bool:
        """
        Ask before a line is run that the screen has written, however it was edited, if it does harm.

        True while the question is open: the line stays at the prompt.
        """
        written, words = self._written, text.split(None, 1)
        if written is None or not words or words[0] != written or self._refused(written):
            return False
        reason = self.harm(text)
        if reason is None:
            self._written = None
            return False

        def answered(answer: str | None) -> None:
            if answer == RUN:
                self._written = None
                self.prompt.set_input("")
                self.prompt.run_line(text)

        self.push_screen(ConfirmPopup(self.look, "Run this?", text.strip(), [f"It {reason}."]), answered)
        return True

    # The menu of actions.

    def choices(self) -> list[Choice]:
        """What can be done to the selection."""
        selected = self.selection()
        self._take_bitmaps(selected)
        return choices(self.state, selected)

    def can_act(self) -> bool:
        """Whether anything can be done to the selection."""
        selected = self.selection()
        self._take_bitmaps(selected)
        return possible(self.state, selected)

    def _take_bitmaps(self, selected: Subject | None) -> None:
        """Bitmaps as completion knows them; it is told that they are wanted by the first look at a node with some."""
        node = self.state.graph.nodes.get(selected.name) if isinstance(selected, NodeSubject) else None
        if node is None or not node.bitmaps:
            return
        found: dict[str, tuple[BitmapState, ...]] = {}
        for bitmap in self.session.knowledge.names.bitmaps_of(()):
            state = BitmapState(bitmap.name, bitmap.recording, bitmap.busy, bitmap.inconsistent)
            found[bitmap.node] = (*found.get(bitmap.node, ()), state)
        self.state.bitmaps = found

    def action_actions(self) -> None:
        """Open the menu of what can be done to the selection."""
        subject, found = self.selection(), self.choices()
        if not found:
            return

        def chosen(command: str | None) -> None:
            for choice in found:
                if choice.command == command:
                    self.choose(choice)
                    return

        title = safe_text(self._name_of(subject))
        if self._refused(found[0].word):
            title += f" ({_NOT_SENT})"
        self.push_screen(ActionsPopup(self.look, title, found), chosen)

    def _name_of(self, subject: Subject | None) -> str:
        if isinstance(subject, NodeSubject):
            return subject.name
        if isinstance(subject, ParentSubject):
            return self.state.graph.parent_label(subject.key)
        if isinstance(subject, JobSubject):
            job = self.state.jobs.by_serial(subject.serial)
            return job.id if job is not None else ""
        return ""

    def action_node(self, key: str) -> None:
        """Do a node's action by its key; say so where it cannot be done."""
        for choice in self.choices():
            if choice.key == key:
                self.choose(choice)
                return
        action = next((action for action in NODE_ACTIONS if action.key == key), None)
        selected = self.selection()
        if action is None or selected is None:
            return
        name, what = safe_text(self._name_of(selected)) or "this", action.name.partition(":")[0]
        if action.command not in self.state.commands:
            self.header.say(f"{what}: the server has no {action.command}")
        elif isinstance(selected, NodeSubject):
            self.header.say(f"{what}: not with {name} as it is now")
        else:
            self.header.say(f"{what}: {name} is no node")

    # The palette.

    def action_palette(self) -> None:
        """Open the palette."""
        self.push_screen(PalettePopup(self.look, self.palette_items()))

    def palette_items(self) -> list[PaletteItem]:
        """Actions on the selection, what the focused pane and the screen can do, themes, and every command."""
        items = [
            PaletteItem(f"{safe_text(self._name_of(self.selection()))}: {choice.name}", safe_text(choice.word),
                        partial(self.choose, choice))
            for choice in self.choices()
        ]  # fmt: skip
        items += self._bound()
        items += [
            PaletteItem(f"inspector: {name.lower()}", "a section of it", partial(self._show_section, number))
            for number, name in enumerate(self.inspector.sections, 1)
        ]
        items += [
            PaletteItem(f"theme: {name}", "the colours now" if name == self.look.theme.name else "other colours",
                        partial(self._use_theme, name))
            for name in theme_names()
        ]  # fmt: skip
        schema = self.session.knowledge.schema
        items += [
            PaletteItem(name, f"read-only: {note}".rstrip(": ") if self._refused(name) else note,
                        partial(self._write_template, name))
            for name in sorted(schema.commands or self.state.commands)
            for note in (describe(schema, name),)
        ]  # fmt: skip
        return items

    def _bound(self) -> list[PaletteItem]:
        """What the keys that work now do."""
        seen: set[tuple[int, str]] = set()
        items: list[PaletteItem] = []
        plain = {binding.action for binding in RowsPane.BINDINGS if isinstance(binding, Binding)} | {"palette"}
        ascii_only = self.look.symbols.arrow != "→"
        for active in self.screen.active_bindings.values():
            binding, node = active.binding, active.node
            mark = (id(node), binding.action)
            if not active.enabled or not binding.description or binding.action in plain or mark in seen:
                continue
            if isinstance(node, Screen) or binding.action.startswith(("app.node(", "verb(", "help_quit")):
                continue  # Textual's own, and what is among the actions on the selection
            seen.add(mark)
            where = node.title.lower() if isinstance(node, RowsPane) else "screen"
            items.append(
                PaletteItem(f"{where}: {binding.description}", f"key {key_name(binding, ascii_only)}",
                            partial(self._perform, binding.action, node))
            )  # fmt: skip
        return items

    def _perform(self, action: str, node: DOMNode) -> None:
        self.call_later(self.run_action, action, node)

    def _show_section(self, number: int) -> None:
        self.action_pane("inspector")
        self.call_later(self.run_action, f"section_number({number})", self.inspector)

    def _use_theme(self, name: str) -> None:
        self.use_theme_called(name)

    def _write_template(self, command: str) -> None:
        self.write_command(*template(self.session.knowledge.schema, command))

    # The end.

    def under_way(self) -> list[str]:
        """What would be cut short by leaving; nothing where the engine is not in this process."""
        if self.options.connect is not None or not self.state.connected:
            return []
        state = self.state
        told: list[str] = []
        live = [job.id for job in state.jobs.listed() if not job.finished]
        if live:
            told.append(f"{_count(len(live), 'job')} under way: {_names(live)}")
        for kind, what in (("device", "guest"), ("export", "export")):
            working = [
                parent.name or parent.id
                for key, parent in state.graph.parents.items()
                if parent.kind == kind and any(_moving(state, edge.child) for edge in state.graph.children(key))
            ]
            if working:
                told.append(f"{_count(len(working), what)} at work: {_names(working)}")
        return told

    def leave(self, finish: Callable[[], None]) -> None:
        """End by *finish*; ask first where something is under way. Asking to leave twice is a yes."""
        told = self.under_way()
        if isinstance(self.screen, _LeavePopup):
            finish()
            return
        if not told:
            finish()
            return
        while isinstance(self.screen, Popup):
            self.pop_screen()

        def answered(answer: str | None) -> None:
            if answer == RUN:
                finish()

        self.push_screen(_LeavePopup(self.look, told), answered)


class _LeavePopup(ConfirmPopup):
    """The question before leaving."""

    def __init__(self, look: Look, told: list[str]) -> None:
        warning = [*told, "Leaving ends all of this; the images are closed cleanly."]
        super().__init__(look, "Quit?", "", warning, verb="or ^Q quits", edit=False)


def _moving(state: ScreenState, node: str | None) -> bool:
    rate = state.io.rate(node or "")
    return bool(rate.rd_ops or rate.wr_ops)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _names(names: list[str]) -> str:
    shown = ", ".join(safe_text(name) for name in names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
