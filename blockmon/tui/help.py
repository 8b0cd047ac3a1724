"""The text of the help: keys from the bindings, signs from the tables they are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blockmon.repl.keys import KEYS
from blockmon.tui.configured import remapped
from blockmon.tui.events_pane import EventsPane
from blockmon.tui.graph_pane import GraphPane
from blockmon.tui.inspector import InspectorPane
from blockmon.tui.jobs_pane import JobsPane
from blockmon.tui.look import Look
from blockmon.tui.popups import binding_lines
from blockmon.tui.rows import RowsPane

Section = tuple[str, Sequence[tuple[str, str]]]
_AS_THEY_ARE: Mapping[str, str] = {}


def help_sections(
    look: Look, app_bindings: Iterable[Any], focused: str | None = None, chosen: Mapping[str, str] = _AS_THEY_ARE
) -> list[Section]:
    """All sections: first the keys of the pane in focus, by its id, then everything else, and what the signs mean.

    *chosen* are the keys of the user's configuration, by the ids of the bindings."""
    symbols = look.symbols
    ascii_only = symbols.arrow != "→"

    def keys(bindings: Iterable[Any]) -> list[tuple[str, str]]:
        return binding_lines(remapped(bindings, chosen), ascii_only)

    panes: dict[str, Section] = {
        "graph": ("Graph", keys(GraphPane.BINDINGS)),
        "jobs": ("Jobs", keys(JobsPane.BINDINGS)),
        "events": ("Events", keys(EventsPane.BINDINGS)),
        "inspector": ("Inspector", keys(InspectorPane.BINDINGS)),
        "prompt": ("Prompt", KEYS),
    }
    lists: Section = ("In every list", keys(RowsPane.BINDINGS))
    sections: list[Section] = []
    if focused in panes:
        title, lines = panes.pop(focused)
        sections.append((f"{title}, where you are", lines))
        if focused != "prompt":
            sections.append(lists)
    sections.append(("Everywhere", keys(app_bindings)))
    if lists not in sections:
        sections.append(lists)
    sections += panes.values()
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
                (symbols.export, "a node that is exported"),
                (symbols.bitmap, "dirty bitmaps"),
                ("+ ~ -", "new, changed, gone: for a moment"),
                *((symbols.state(state), f"job: {state}") for state in states),
            ],
        )
    )
    return sections
