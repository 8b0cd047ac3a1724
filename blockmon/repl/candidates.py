"""The names that an argument can have, as candidates of a completion, and which of them fit what is typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockmon.model.format import basename, safe_text, size_short
from blockmon.model.graph import EdgeInfo, GraphModel, NodeInfo
from blockmon.model.schema import value_at
from blockmon.repl import matching, offers
from blockmon.repl.files import FileName
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Meaning, Names
from blockmon.repl.offers import Candidate
from blockmon.repl.summaries import DRIVERS

MOST_NODES = 200
"""So many nodes are offered at once; typing on narrows them down."""

_LONGEST_CHAIN = 300
"""So many layers of a chain are offered in its order; the rest by name."""


@dataclass(slots=True)
class Wanted:
    """What may stand at a place: candidates, and whether the nodes' or the disk's names are wanted beside them."""

    word: str
    candidates: list[Candidate] = field(default_factory=list)
    nodes: bool = False
    nodes_first: dict[str, str] = field(default_factory=dict)
    """Nodes to offer in front of the others, with what to say of them first."""
    no_others: bool = False
    """Only the nodes of `nodes_first` will do."""
    without: frozenset[str] = frozenset()
    """Nodes that will not do."""
    files: bool = False
    behind: list[Candidate] = field(default_factory=list)
    """What can follow if what is typed ends here; offered last, and whatever is typed."""

    def add(self, candidate: Candidate) -> None:
        """Offer *candidate* if it matches."""
        self.candidates.append(candidate)


class NameFinder:
    """Finds names in a `Knowledge` and ranks them."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._graph: GraphModel | None = None
        self._known: dict[str, tuple[bool, Candidate]] = {}
        """Of the nodes of `_graph` that were offered before: whether to offer them later than others, and how."""

    def add_names(self, meaning: Meaning, scopes: Sequence[Mapping[str, Any]], wanted: Wanted) -> None:
        """Add the names that *meaning* asks for; *scopes* are the arguments given beside, the nearest object first."""
        names = self._knowledge.names
        match meaning.names:
            case Names.NODE | Names.DEVICE:
                if meaning.names is Names.DEVICE:
                    for name, meta in names.devices.items():
                        wanted.add(Candidate(name, f"device {meta}".rstrip()))
                self._add_nodes(meaning, scopes, wanted)
            case Names.BITMAP:
                offers.add_bitmaps(names, meaning.verb, self._bitmap_nodes(meaning, scopes), wanted.add)
            case Names.SNAPSHOT:
                node = names.root_of(_given(scopes, "device", "node"))
                offers.add_snapshots(names, node, meaning.of, wanted.add)
            case Names.PROPERTY:
                for name, kind in names.properties_of(_given(scopes, "path")).items():
                    if not kind.startswith("child<"):
                        wanted.add(Candidate(name, kind))
            case Names.EDGE:
                for edge in names.graph.children(names.root_of(_given(scopes, meaning.of))):
                    wanted.add(Candidate(edge.name, edge_text(edge, names.graph)))
            case Names.FILE:
                wanted.files = self._knowledge.local_files
            case Names.LAYER:
                self._add_layers(scopes, wanted)
            case Names.FORMAT:
                for info in self._knowledge.schema.infos_at("blockdev-add", ("driver",), {}):
                    for value in info.values:
                        wanted.add(Candidate(value, DRIVERS.get(value, "")))
            case Names.COMMAND:
                for name, command in self._knowledge.hmp.commands.items():
                    if name == command.name:
                        wanted.add(Candidate(name, command.help[:60]))
            case Names.INFO:
                for name, command in self._knowledge.hmp.info.items():
                    wanted.add(Candidate(name, command.help[:60]))
            case _:
                offers.add_simple(names, meaning, wanted.add)

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _add_nodes(self, meaning: Meaning, scopes: Sequence[Mapping[str, Any]], wanted: Wanted) -> None:
        names = self._knowledge.names
        graph = names.graph
        wanted.nodes = True
        if meaning.verb == "children":
            # Only quorum's children can be taken away and added, one by one.
            wanted.nodes_first = {name: "" for name, node in graph.nodes.items() if node.driver == "quorum"}
        elif meaning.verb == "delete":
            unused = names.unused_nodes()
            wanted.nodes_first, wanted.no_others = dict.fromkeys(unused or (), ""), unused is not None
        elif meaning.verb in ("target", "unused"):
            # A node of its own: not one of those that the command is about, and better one that nothing uses yet.
            wanted.without = frozenset(self._chain(scopes, whole=True))
            unused = names.unused_nodes()
            wanted.nodes_first = {name: "" for name in unused or () if name not in wanted.without}
            wanted.no_others = meaning.verb == "unused" and unused is not None
        elif meaning.verb in ("chain", "below") and (chain := self._chain(scopes, whole=meaning.verb == "chain")):
            wanted.nodes_first = dict.fromkeys(chain, "")
            wanted.no_others = len(chain) < _LONGEST_CHAIN - 1
        elif meaning.of:
            # The child that hangs there now: leaving it is the usual choice.
            edge = graph.child(_given(scopes, "node-name"), meaning.of)
            if edge is not None and edge.child is not None and edge.child in graph.nodes:
                wanted.nodes_first = {edge.child: edge_text(edge, None)}
        else:
            wanted.nodes_first = dict.fromkeys(self._chain(scopes), "")

    def _chain(self, scopes: Sequence[Mapping[str, Any]], *, whole: bool = False) -> tuple[str, ...]:
        """The layers below the node or device that the command is about, nearest first; with *whole* itself behind."""
        graph = self._knowledge.names.graph
        start = self._knowledge.names.root_of(_given(scopes, "device", "node", "parent"))
        top, *below = tuple(self._layers(graph, start)) or ("",)
        return (*below, top) if whole and top else tuple(below)

    @staticmethod
    def _layers(graph: GraphModel, start: str) -> dict[str, None]:
        """*start* and what is below it, in order."""
        found: dict[str, None] = {}
        while start in graph.nodes and start not in found and len(found) < _LONGEST_CHAIN:
            found[start] = None
            below = graph.backing(start)
            start = (below.child or "") if below is not None else ""
        return found

    def _bitmap_nodes(self, meaning: Meaning, scopes: Sequence[Mapping[str, Any]]) -> list[str] | None:
        """The nodes whose bitmaps can be meant; None when no node is named, [] when there is none of that name."""
        given = _given(scopes, "node", "node-name", "device")
        if not given:
            return None
        names = self._knowledge.names
        root = names.root_of(given) or given
        return list(self._layers(names.graph, root)) or [root] if meaning.verb == "chain" else [root]

    def _add_layers(self, scopes: Sequence[Mapping[str, Any]], wanted: Wanted) -> None:
        nodes = self._knowledge.names.graph.nodes
        chain: Iterable[NodeInfo] = [nodes[name] for name in self._chain(scopes)] or nodes.values()
        seen: set[str] = set()
        for node in chain:
            # The protocol node of an image has the same file name; one of the two is enough.
            if node.filename and node.filename not in seen and not node.filename.startswith("json:"):
                seen.add(node.filename)
                wanted.add(Candidate(node.filename, f"{node.name} {node.driver}"))
                if len(seen) >= 10 * MOST_NODES:
                    break

    # Ranking ---------------------------------------------------------------------------------------------------------

    def ranked(self, wanted: Wanted, files: Iterable[FileName]) -> list[Candidate]:
        """The candidates that match what is typed, the best first."""
        found: list[tuple[int, Candidate]] = []
        word, folded = wanted.word, matching.fold(wanted.word)
        for candidate in wanted.candidates:
            rank = matching.rank(word, folded, candidate.shown or candidate.text)
            if rank is not None:
                found.append((rank + candidate.last, candidate))
        if wanted.nodes:
            found += self._nodes(wanted)
        result = [_file_candidate(file) for file in files]
        if not found and not result and not wanted.behind:
            found = self._loosely(wanted, folded)
        found.sort(key=lambda pair: pair[0])
        return [candidate for _, candidate in found] + result + wanted.behind

    def _nodes(self, wanted: Wanted) -> list[tuple[int, Candidate]]:
        names, word = self._knowledge.names, wanted.word
        nodes, first = names.graph.nodes, wanted.nodes_first
        folded = matching.fold(word)
        found = []
        for name, note in first.items():
            rank = matching.rank(word, folded, name)
            if rank is not None and name in nodes:
                found.append((rank - 1, _node_candidate(nodes[name], note)))
                if len(found) >= MOST_NODES:
                    break
        if wanted.no_others:
            return found
        for name in names.index.starting(word, MOST_NODES):
            if name not in first and name not in wanted.without:
                later, candidate = self._offer(names.graph, name)
                found.append((int(later), candidate))
        if len(found) < MOST_NODES:
            for rank, name in names.index.matching(word, MOST_NODES):
                if name not in first and name not in wanted.without:
                    found.append((rank, self._offer(names.graph, name)[1]))
        return found

    def _offer(self, graph: GraphModel, name: str) -> tuple[bool, Candidate]:
        """A node's candidate, and whether it comes later than others: commands are mostly about whole images, less
        about what only carries one, and #block123."""
        if graph is not self._graph:
            self._graph, self._known = graph, {}
        known = self._known.get(name)
        if known is None:
            later = name.startswith("#") or _only_carries(graph, name)
            known = self._known[name] = (later, _node_candidate(graph.nodes[name]))
        return known

    def _loosely(self, wanted: Wanted, folded: str) -> list[tuple[int, Candidate]]:
        found: list[tuple[int, Candidate]] = []
        for candidate in wanted.candidates:
            rank = matching.loosely(folded, candidate.shown or candidate.text)
            if rank is not None:
                found.append((rank, candidate))
        nodes = self._knowledge.names.graph.nodes
        for name in wanted.nodes_first if wanted.no_others else ():
            if name in nodes and (rank := matching.loosely(folded, name)) is not None:
                found.append((rank, _node_candidate(nodes[name])))
        if wanted.nodes and not wanted.no_others:
            names = self._knowledge.names
            found += [(rank, _node_candidate(nodes[name])) for rank, name in names.index.loose(wanted.word, MOST_NODES)]
        return found


def scopes_of(arguments: Mapping[str, Any], path: Sequence[str | int]) -> list[Mapping[str, Any]]:
    """The objects around the place at *path* inside *arguments*, the innermost first."""
    found: list[Mapping[str, Any]] = []
    for depth in range(len(path)):
        value = value_at(arguments, path[:depth])
        if isinstance(value, Mapping):
            found.insert(0, value)
    return found or [arguments]


def _given(scopes: Sequence[Mapping[str, Any]], *names: str) -> str:
    """What is given for one of *names*, in the nearest object that has one."""
    for scope in scopes:
        for name in names:
            if isinstance(scope.get(name), str) and scope[name]:
                return str(scope[name])
    return ""


def edge_text(edge: EdgeInfo, graph: GraphModel | None) -> str:
    """An edge in a few words: the roles of the child, and with *graph* the child itself."""
    text = ", ".join(edge.roles)
    if graph is None:
        return f"now {edge.name} ({text})" if text else f"now {edge.name}"
    child = graph.nodes.get(edge.child or "")
    what = f"{child.name} {child.driver} {size_short(child.size)}" if child is not None else edge.child or "broken"
    return f"{text} → {what}" if text else f"→ {what}"


def _only_carries(graph: GraphModel, node: str) -> bool:
    parents = graph.parents_of(node)
    names = [edge.name for edge in parents if edge.parent_kind == "node"]
    return bool(names) and all(name == "file" for name in names)


def _node_candidate(node: NodeInfo, note: str = "") -> Candidate:
    parts = [note, node.driver or "?", size_short(node.size), "ro" if node.read_only else "rw"]
    if node.filename and not node.filename.startswith("json:"):
        parts.append(safe_text(basename(node.filename)))
    return Candidate(node.name, " ".join(filter(None, parts)))


def _file_candidate(file: FileName) -> Candidate:
    meta = file.format if file.size is None else f"{file.format} {size_short(file.size)}".strip()
    shown = safe_text(basename(file.path)) + ("/" if file.directory else "")
    return Candidate(file.path, "directory" if file.directory else meta, shown=shown, goes_on=file.directory)
