"""The names that an argument can have, as candidates of a completion, and which of them fit what is typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blockmon.model.format import basename, safe_text, size_short
from blockmon.model.graph import GraphModel, NodeInfo
from blockmon.model.jobs import VERBS
from blockmon.repl.files import FileName
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Meaning, Names

# What qemu-io does, by the words of its own help; the block commands that the engine's issue names.
_IO_COMMANDS = {
    "read": "[-P pattern] [-v] offset length",
    "write": "[-P pattern] [-z] [-u] [-c] [-f] offset length",
    "aio_read": "[-P pattern] offset length",
    "aio_write": "[-P pattern] [-z] offset length",
    "aio_flush": "wait for the aio requests",
    "flush": "write back the caches",
    "discard": "offset length",
    "map": "what is allocated where",
    "alloc": "offset [length]",
    "length": "of the node in bytes",
    "truncate": "length",
}

_LONGEST_CHAIN = 300
"""So many layers of a chain are offered in its order; the rest by name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion. `text` is the name itself, or with `literal` exactly what to insert."""

    text: str
    meta: str = ""
    shown: str = ""
    literal: bool = False
    required: bool = False
    last: bool = False
    """Offered behind the others that match as well."""
    goes_on: bool = False
    """A directory: more is typed behind it."""


@dataclass(slots=True)
class Wanted:
    """What may stand at a place: candidates, and whether the nodes' or the disk's names are wanted beside them."""

    word: str
    candidates: list[Candidate] = field(default_factory=list)
    nodes: bool = False
    nodes_first: tuple[str, ...] = ()
    files: bool = False

    def add(self, candidate: Candidate) -> None:
        """Offer *candidate* if it matches."""
        self.candidates.append(candidate)


class NameFinder:
    """Finds names in a `Knowledge` and ranks them."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def add_names(self, meaning: Meaning, arguments: Mapping[str, Any], wanted: Wanted) -> None:
        """Add the names that *meaning* asks for; *arguments* are those given beside."""
        names = self._knowledge.names
        match meaning.names:
            case Names.NODE | Names.DEVICE:
                if meaning.names is Names.DEVICE:
                    for name, meta in names.devices.items():
                        wanted.add(Candidate(name, f"device {meta}".rstrip()))
                wanted.nodes = True
                wanted.nodes_first = self._chain(arguments)
            case Names.JOB:
                for job in names.jobs.values():
                    if _takes(meaning.verb, job.status) and (job.block_job or not meaning.block_jobs_only):
                        likely = meaning.verb not in ("pause", "resume") or (
                            (job.status in ("paused", "standby")) == (meaning.verb == "resume")
                        )
                        wanted.add(Candidate(job.id, f"{job.type} {job.status}".strip(), last=not likely))
            case Names.EXPORT:
                for name, meta in names.exports.items():
                    wanted.add(Candidate(name, meta))
            case Names.BITMAP:
                node = next((str(arguments[k]) for k in ("node", "node-name", "device") if arguments.get(k)), None)
                for name, meta in names.bitmaps_of(node).items():
                    wanted.add(Candidate(name, f"on {meta}"))
            case Names.OBJECT:
                for name, meta in names.objects.items():
                    if meta.startswith(meaning.of):
                        wanted.add(Candidate(name, meta))
            case Names.FILE:
                wanted.files = self._knowledge.local_files
            case Names.LAYER:
                self._add_layers(arguments, wanted)
            case Names.FORMAT:
                for info in self._knowledge.schema.infos_at("blockdev-add", ("driver",), {}):
                    for value in info.values:
                        wanted.add(Candidate(value))
            case Names.EDGE:
                for edge in names.graph.children(str(arguments.get(meaning.of, ""))):
                    wanted.add(Candidate(edge.name, f"→ {edge.child or 'broken'}"))
            case Names.COMMAND:
                for name, command in self._knowledge.hmp.commands.items():
                    if name == command.name:
                        wanted.add(Candidate(name, command.help[:60]))
            case Names.INFO:
                for name, command in self._knowledge.hmp.info.items():
                    wanted.add(Candidate(name, command.help[:60]))
            case Names.NOTHING:
                pass

    def add_io_commands(self, quote: str, wanted: Wanted) -> None:
        """Add what qemu-io can be told; its command is one quoted word of the HMP line."""
        for name, usage in _IO_COMMANDS.items():
            text = name if quote else f'"{name}'
            wanted.add(Candidate(text, usage, shown=name, literal=True))

    def _chain(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The layers below the node or device that the command is about, nearest first."""
        graph = self._knowledge.names.graph
        start = str(arguments.get("device") or arguments.get("node") or "")
        if start not in graph.nodes:
            start = next((e.child or "" for e in graph.children(f"device:{start}")), "")
        found: dict[str, None] = {}
        while start in graph.nodes and start not in found and len(found) < _LONGEST_CHAIN:
            found[start] = None
            below = graph.backing(start)
            start = (below.child or "") if below is not None else ""
        return tuple(found)[1:]

    def _add_layers(self, arguments: Mapping[str, Any], wanted: Wanted) -> None:
        nodes = self._knowledge.names.graph.nodes
        chain = [nodes[name] for name in self._chain(arguments)] or list(nodes.values())
        seen: set[str] = set()
        for node in chain:
            # The protocol node of an image has the same file name; one of the two is enough.
            if node.filename and node.filename not in seen and not node.filename.startswith("json:"):
                seen.add(node.filename)
                wanted.add(Candidate(node.filename, f"{node.name} {node.driver}"))

    def ranked(self, wanted: Wanted, files: Iterable[FileName]) -> list[Candidate]:
        """The candidates that match what is typed, the best first."""
        found: list[tuple[int, Candidate]] = []
        word, folded = wanted.word, _fold(wanted.word)
        for candidate in wanted.candidates:
            rank = _rank(word, folded, candidate.shown or candidate.text)
            if rank is not None:
                found.append((rank + (1 if candidate.last else 0), candidate))
        if wanted.nodes:
            found += self._nodes(wanted, word, folded)
        found.sort(key=lambda pair: pair[0])
        result = [candidate for _, candidate in found]
        result += [_file_candidate(file) for file in files]
        return result

    def _nodes(self, wanted: Wanted, word: str, folded: str) -> list[tuple[int, Candidate]]:
        names = self._knowledge.names
        first = set(wanted.nodes_first)
        found = []
        nodes = names.graph.nodes
        for name in wanted.nodes_first:
            if name.startswith(word):
                found.append((-1, _node_candidate(nodes[name])))
        for node in names.nodes_starting(word):
            if node.name not in first:
                # Commands are mostly about whole images: what only carries one, and #block123, come later.
                later = node.name.startswith("#") or _only_carries(names.graph, node.name)
                found.append((1 if later else 0, _node_candidate(node)))
                if len(found) >= 500:
                    return found
        if len(word) >= 2:
            for name in names.node_names:
                if folded in _fold(name) and not name.startswith(word):
                    found.append((4, _node_candidate(nodes[name])))
                    if len(found) >= 500:
                        break
        return found


def _only_carries(graph: GraphModel, node: str) -> bool:
    parents = graph.parents_of(node)
    names = [edge.name for edge in parents if edge.parent_kind == "node"]
    return bool(names) and all(name == "file" for name in names)


def _fold(text: str) -> str:
    return text.replace("_", "-").lower()


def _rank(word: str, folded: str, text: str) -> int | None:
    """How well *text* matches what is typed, 0 best; None not at all. HMP's _ and QMP's - count as the same."""
    if text.startswith(word):
        return 0
    other = _fold(text)
    if other.startswith(folded):
        return 2
    return 4 if len(word) >= 2 and folded in other else None


def _takes(verb: str, status: str) -> bool:
    return verb in VERBS.get(status, ())


def _node_candidate(node: NodeInfo) -> Candidate:
    parts = [node.driver or "?", size_short(node.size), "ro" if node.read_only else "rw"]
    if node.filename and not node.filename.startswith("json:"):
        parts.append(safe_text(basename(node.filename)))
    return Candidate(node.name, " ".join(parts))


def _file_candidate(file: FileName) -> Candidate:
    meta = file.format if file.size is None else f"{file.format} {size_short(file.size)}".strip()
    shown = safe_text(basename(file.path)) + ("/" if file.directory else "")
    return Candidate(file.path, "directory" if file.directory else meta, shown=shown, goes_on=file.directory)
