"""A server for the prompt's tests: canned answers, and events on demand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockmon.repl.knowledge import Knowledge
from blockmon.repl.session import ReplSession
from tests.blockmon.fakes import FakeBackend, event

__all__ = ["CHAIN", "HELP", "INFO_HELP", "JOBS", "Server", "event", "graph_reply", "knowledge_of", "schema_entries"]

DATA = Path(__file__).resolve().parents[2] / "data"

HELP = """\
block_job_cancel [-f] device -- stop a job (-f at once,
\t\t\t without waiting)
block_job_pause device -- hold a job
block_resize device size -- change the length of an image
block_stream device [speed [base]] -- copy a backing file's data up
commit device|all -- write an overlay's data down
help|? [cmd] -- say what there is
info [subcommand] -- show something
nbd_server_stop nbd_server_stop -- end the server
qemu-io [-d] [device] "[command]" -- do I/O (-d: device: by qdev id)
quit|q  -- end
snapshot_blkdev [-n] device [new-image-file] [format] -- put an overlay on top
"""
INFO_HELP = """\
info block [-n] [-v] [device] -- show devices (-n: named nodes; -v: in full)
info block-jobs  -- show jobs
"""


def schema_entries(*, hmp: bool = True, graph: bool = True) -> list[dict[str, Any]]:
    """The introspection of a real qemu-storage-daemon 7.2, with what our engine has more."""
    entries: list[dict[str, Any]] = json.loads((DATA / "schema-7.2.json").read_text())
    if hmp:
        entries.append({"name": "human-monitor-command", "meta-type": "command", "arg-type": "hmp", "ret-type": "str"})
        members = [{"name": "command-line", "type": "str"}, {"name": "cpu-index", "type": "int", "default": None}]
        entries.append({"name": "hmp", "meta-type": "object", "members": members})
    if graph:
        entry = {"name": "x-blockmon-query-graph", "meta-type": "command", "arg-type": "0", "ret-type": "0"}
        entries.append(entry)
    return entries


def graph_reply(nodes: Sequence[tuple[str, str, str]] = ()) -> dict[str, Any]:
    """An answer of x-blockmon-query-graph: a chain of (node, driver, file name), each backed by the next."""
    items = [
        {"node-name": name, "driver": driver, "filename": filename, "read-only": index > 0, "size": 8 << 30}
        for index, (name, driver, filename) in enumerate(nodes)
    ]
    edges = [
        {"parent": above[0], "parent-kind": "node", "name": "backing", "child": below[0], "roles": ["cow"]}
        for above, below in itertools.pairwise(nodes)
    ]
    return {"generation": 1, "nodes": items, "parents": [], "edges": edges}


CHAIN = (
    ("overlay2", "qcow2", "/img/o2.qcow2"),
    ("overlay1", "qcow2", "/img/o1.qcow2"),
    ("base", "raw", "/img/base.raw"),
)
JOBS = (
    {"id": "stream0", "type": "stream", "status": "running", "current-progress": 1, "total-progress": 9},
    {"id": "mirror0", "type": "mirror", "status": "ready", "current-progress": 1, "total-progress": 9},
    {"id": "held", "type": "backup", "status": "paused", "current-progress": 1, "total-progress": 9},
    {"id": "create0", "type": "create", "status": "concluded", "current-progress": 1, "total-progress": 1},
    {"id": "wait0", "type": "commit", "status": "pending", "current-progress": 1, "total-progress": 1},
)


class Server(FakeBackend):
    """A server with a chain, jobs in several states, a device, an export, objects and a human monitor."""

    def __init__(self, answers: Mapping[str, Any] | None = None, *, hmp: bool = True, graph: bool = True) -> None:
        super().__init__(schema=schema_entries(hmp=hmp, graph=graph))
        self.answers = {
            "query-jobs": list(JOBS),
            "query-block-jobs": [],
            "query-block": [{"device": "vda", "inserted": {"drv": "qcow2", "node-name": "overlay2"}}],
            "query-block-exports": [{"id": "exp0", "type": "nbd", "node-name": "overlay2", "shutting-down": False}],
            "qom-list": [
                {"name": "type", "type": "string"},
                {"name": "tg0", "type": "child<throttle-group>"},
                {"name": "sec0", "type": "child<secret>"},
            ],
            "query-named-block-nodes": [
                {"node-name": "overlay2", "drv": "qcow2", "dirty-bitmaps": [{"name": "b0"}, {"count": 1}]},
                {"node-name": "base", "drv": "raw", "image": {"virtual-size": 1024}, "file": "/img/base.raw"},
            ],
            "query-version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},
            "quit": {},
            **({"x-blockmon-query-graph": graph_reply(CHAIN)} if graph else {}),
            **({"human-monitor-command": self.hmp} if hmp else {}),
            **(answers or {}),
        }

    def hmp(self, command_line: str) -> str:
        """The human monitor."""
        known = {"help": HELP, "help info": INFO_HELP, "info block": "vda: /img/o2.qcow2 (qcow2)\r\n", "quit": ""}
        return known.get(command_line, f"unknown command: '{command_line}'\r\n")

    @property
    def commands(self) -> list[str]:
        """The names of what was executed, in order."""
        return [name for name, _ in self.calls]


async def knowledge_of(server: FakeBackend) -> Knowledge:
    """What a session has learned of *server* once it has asked for everything."""
    session = ReplSession(server)
    await session.start()
    await session.learned()
    await session.close()
    return session.knowledge
