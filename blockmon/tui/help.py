"""The text of the help: keys from the bindings, signs from the tables they are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from blockmon.repl.keys import KEYS
from blockmon.tui.events_pane import EventsPane
from blockmon.tui.graph_pane import GraphPane
from blockmon.tui.inspector import InspectorPane
from blockmon.tui.jobs_pane import JobsPane
from blockmon.tui.look import Look
from blockmon.tui.popups import binding_lines
from blockmon.tui.rows import RowsPane

Section = tuple[str, Sequence[tuple[str, str]]]


def help_sections(look: Look, app_bindings: Iterable[Any]) -> list[Section]:
    """All sections: the screen's keys, each pane's, the prompt's, and the signs."""
    symbols = look.symbols
    ascii_only = symbols.arrow != "→"

    def keys(bindings: Iterable[Any]) -> list[tuple[str, str]]:
        return binding_lines(bindings, ascii_only)

    sections: list[Section] = [
        ("Everywhere", keys(app_bindings)),
        ("In every list", keys(RowsPane.BINDINGS)),
        ("Graph", keys(GraphPane.BINDINGS)),
        ("Jobs", keys(JobsPane.BINDINGS)),
        ("Events", keys(EventsPane.BINDINGS)),
        ("Inspector", keys(InspectorPane.BINDINGS)),
    ]
    sections.append(("Prompt", KEYS))
    states = ("running", "paused", "ready", "waiting", "pending", "concluded", "completed", "failed", "cancelled")
    sections.append(
        (
            "Signs",
            [
                (symbols.arrow, "an edge and the node it leads to"),
                (symbols.frozen_arrow, "a frozen edge: a job needs it to stay"),
                (f"{symbols.opened} {symbols.closed}", "unfolded, folded"),
                (symbols.see, "a shared node, shown in full further up"),
                (symbols.error, "a broken edge, an error"),
                (symbols.busy, "a node that is in use by something that is no job"),
                *((symbols.state(state), f"job: {state}") for state in states),
            ],
        )
    )
    return sections
