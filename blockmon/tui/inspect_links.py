"""The inspector's pages about links: who takes which permissions on a node, and what it takes below."""

from __future__ import annotations

from collections.abc import Sequence

from blockmon.model.format import safe_text
from blockmon.model.graph import PERMISSIONS, EdgeInfo
from blockmon.tui.inspect_text import Pieces, View, fit, permission_letters, wrap
from blockmon.tui.look import Look

_COLUMNS = {"consistent-read": "read", "write": "write", "write-unchanged": "unchgd", "resize": "resize"}
_NARROW_COLUMNS = {"consistent-read": "read", "write": "write", "write-unchanged": "unch", "resize": "size"}
_NAME = 14


def _cell(view: View) -> int:
    """Cells of a column of the matrix."""
    return 8 if view.width >= 46 else 6


def _titles(view: View) -> dict[str, str]:
    return _COLUMNS if _cell(view) > len("resize") else _NARROW_COLUMNS


def permissions(view: View, key: str) -> list[Pieces]:
    """The matrix of everything that holds *key* (a node, or the key of a parent), and of what it holds itself."""
    graph, look = view.state.graph, view.look
    lines: list[Pieces] = []
    # The monitor holds a node without taking anything or standing in anybody's way.
    above = [(edge, graph.parent_label(edge.parent)) for edge in graph.parents_of(key) if edge.parent_kind != "monitor"]
    below = [(edge, edge.child) for edge in graph.children(key)]
    if not graph.permissions_known:
        lines += [*_ends("used by", above, arrow_first=False, look=look), []] if key in graph.nodes else []
        lines += [*_ends("uses", below, arrow_first=True, look=look), []]
        lines += wrap([(UNTOLD, "dim")], view.width)
        return lines
    first = _first_column([*above, *below], view)
    titles = _titles(view)
    if key in graph.nodes:
        lines += [*_matrix("used by", above, view, first, whole=True), []]
    lines += _matrix("uses", below, view, first, whole=False)
    lines.append([])
    lines.append([("T", "strong"), (" takes it   ", "dim"), ("S", "text"), (" lets others have it", "dim")])
    lines.append([(f"{titles['write-unchanged']}: writing what is there already", "dim")])
    if any(edge.frozen for edge, _ in (*above, *below)):
        lines.append([(f"{look.symbols.frozen_arrow} frozen: a job needs the link to stay", "dim")])
    return lines


UNTOLD = "What they take and share this server does not tell: that takes x-debug-query-block-graph."


def _ends(title: str, edges: Sequence[tuple[EdgeInfo, str | None]], *, arrow_first: bool, look: Look) -> list[Pieces]:
    """Links by their names alone."""
    lines: list[Pieces] = [[(title, "strong")]]
    for edge, other in edges:
        link = safe_text(edge.name or edge.parent_kind)
        if other is None:
            lines.append([(f"  {link} ", "edge"), (f"{look.symbols.error} broken link", "state.error")])
        elif arrow_first:
            lines.append([(f"  {link} {look.symbols.arrow} ", "edge"), (safe_text(other), "strong")])
        else:
            lines.append([("  ", "text"), (safe_text(other), "strong"), (f" {link} {look.symbols.arrow}", "edge")])
        if edge.roles:
            lines[-1].append((f"  {', '.join(edge.roles)}", "dim"))
    return lines if edges else [*lines, [("  none", "dim")]]


def _first_column(edges: Sequence[tuple[EdgeInfo, str | None]], view: View) -> int:
    """Cells for the names of both ends of a link."""
    names = [len(safe_text(other or "")) + len(edge.name or edge.parent_kind) + 7 for edge, other in edges]
    return min(max(_NAME, view.width - _cell(view) * len(PERMISSIONS)), max([_NAME, *names]))


def _matrix(
    title: str, edges: Sequence[tuple[EdgeInfo, str | None]], view: View, first: int, *, whole: bool
) -> list[Pieces]:
    """Links, each with what it takes and shares of every permission; *whole* adds what that is together."""
    symbols = view.look.symbols
    lines: list[Pieces] = [[(f"{title:<{first}}"[:first], "strong")]]
    cell = _cell(view)
    titles = _titles(view)
    lines[0] += [(f"{titles[name]:<{cell}}", "dim") for name in PERMISSIONS]
    if not edges:
        return [*lines, [("  none", "dim")]]
    for edge, other in edges:
        arrow = symbols.frozen_arrow if edge.frozen else symbols.arrow
        link = safe_text(edge.name or edge.parent_kind)
        if other is None:
            lines.append([(f"  {link} ", "edge"), (f"{symbols.error} broken link", "state.error")])
            continue
        name: Pieces = [("  ", "text"), (safe_text(other), "strong"), (f" {link}", "edge"), (f" {arrow}", "edge")]
        if not whole:
            name = [("  ", "text"), (f"{link} {arrow} ", "edge"), (safe_text(other), "strong")]
        lines.append([*fit(name, first - 1, symbols.ellipsis), (" ", "text"), *_cells(edge.perm, edge.shared, cell)])
        spare = view.width - first - cell * len(PERMISSIONS)
        roles = ", ".join(edge.roles)
        if roles and spare >= len(roles):
            lines[-1].append((roles, "dim"))
    held = [edge for edge, other in edges if other is not None]
    if whole and len(held) > 1:
        taken = frozenset[str]().union(*(edge.perm for edge in held))
        shared = frozenset(PERMISSIONS).intersection(*(edge.shared for edge in held))
        lines.append([*fit([("  together", "dim")], first, symbols.ellipsis), *_cells(taken, shared, cell)])
    return lines


def _cells(taken: frozenset[str], shared: frozenset[str], width: int) -> Pieces:
    cells: Pieces = []
    for name in PERMISSIONS:
        cells.append(("T " if name in taken else "- ", "strong" if name in taken else "dim"))
        text = "S" if name in shared else "-"
        cells.append((f"{text:<{width - 2}}", "text" if name in shared else "state.busy"))
    return cells


def edge_table(
    title: str, edges: Sequence[tuple[EdgeInfo, str | None]], look: Look, *, permissions_known: bool = True
) -> list[Pieces]:
    """Edges, each with its name, what is at its other end, and the permissions taken and shared as letters."""
    if not permissions_known:
        return _ends(title, edges, arrow_first=True, look=look)
    names = min(20, max((len(edge.name or edge.parent_kind) for edge, _ in edges), default=0))
    ends = min(24, max((len(safe_text(other)) for _, other in edges if other is not None), default=0))
    width = max(len(title), 2 + names + 1 + ends)
    lines: list[Pieces] = [[(f"{title:<{width}}  takes  shares", "dim")]]
    for edge, other in edges:
        link = f"{'=' if edge.frozen else ' '} {safe_text(edge.name or edge.parent_kind):<{names}.{names}} "
        if other is None:
            lines.append([(link, "edge"), (f"{look.symbols.error} broken link", "state.error")])
            continue
        taken, shared = permission_letters(edge.perm), permission_letters(edge.shared)
        lines.append(
            [
                (link, "edge"),
                (f"{safe_text(other):<{ends}.{ends}}".ljust(width - len(link)), "strong"),
                (f"  {taken}   {shared}", "text"),
                (f"  {', '.join(edge.roles)}" if edge.roles else "", "dim"),
            ]
        )
    if not edges:
        lines.append([("  none", "dim")])
    return lines
