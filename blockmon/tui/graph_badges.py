"""The badges of the tree: signs of what goes on at a node, each with a word, shortened where there is little room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockmon.model.format import safe_text
from blockmon.model.refresher import ScreenState
from blockmon.model.tree import PARENT, REFERENCE, TreeRow
from blockmon.tui.symbols import Symbols

# Why every node of a chain but the topmost is busy; the tree shows as much by its shape.
_BACKING_REASON = "node is used as backing hd of "


@dataclass(frozen=True)
class Badge:
    """A sign with its words, and the form it has where there is little room."""

    text: str
    short: str
    style: str


def badges(state: ScreenState, row: TreeRow, symbols: Symbols) -> list[Badge]:
    """The badges of a row, the most important first; those of filters that are folded into its link count too."""
    found: list[Badge] = []
    if row.node is None or row.kind in (REFERENCE, PARENT):
        return found
    graph = state.graph
    if row.node.error:
        found.append(Badge(f"{symbols.error} error", symbols.error, "state.error"))
    jobs: list[Badge] = []
    seen: set[str] = set()
    for name in (*row.filters, row.node.name):
        for edge in graph.jobs_on(name):
            job_id = graph.parent_label(edge.parent)
            if job_id in seen:
                continue
            seen.add(job_id)
            job = state.jobs.live(job_id)
            status = job.status if job is not None else "running"
            sign = symbols.state(status)
            jobs.append(Badge(f"{sign} {safe_text(job_id)}", sign, f"state.{status}"))
    if len(jobs) > 2:
        jobs = [jobs[0], Badge(f"+{len(jobs) - 1} jobs", f"+{len(jobs) - 1}", jobs[1].style)]
    found += jobs
    exports = [
        graph.parent_label(edge.parent)
        for name in (*row.filters, row.node.name)
        for edge in graph.parents_of(name)
        if edge.parent_kind == "export" and (row.edge is None or edge.parent != row.edge.parent)
    ]
    if exports:
        count = f"{len(exports)} exports"
        text = safe_text(exports[0]) if len(exports) == 1 else count
        found.append(Badge(f"{symbols.export} {text}", f"{symbols.export}{len(exports)}", "edge"))
    if not seen and any(not reason.startswith(_BACKING_REASON) for reason in row.node.busy):
        found.append(Badge(f"{symbols.busy} busy", symbols.busy, "state.busy"))
    if row.node.bitmaps:
        count = f"{row.node.bitmaps} bitmap{'s' if row.node.bitmaps > 1 else ''}"
        found.append(Badge(f"{symbols.bitmap} {count}", f"{symbols.bitmap}{row.node.bitmaps}", "edge"))
    return found


def fitted(found: Sequence[Badge], room: int) -> list[tuple[str, str]]:
    """What goes into *room* cells, each with a blank before it; the last are shortened first, then left out."""
    texts = [badge.text for badge in found]
    number = len(found)
    while number and sum(len(text) + 1 for text in texts) > room:
        number -= 1
        texts[number] = found[number].short
    while texts and len(texts) > 1 and sum(len(text) + 1 for text in texts) > room:
        texts.pop()
    return [(text, badge.style) for text, badge in zip(texts, found, strict=False)]
