"""
What can be done to what is selected: each action is one row here, and writes a command into the prompt.

Nothing is executed by choosing one; the command stands in the prompt, ready to edit and send. An action is offered only
where the server has its command and the thing selected is in a state for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from blockmon.model.graph import EdgeInfo, NodeInfo
from blockmon.model.jobs import Job
from blockmon.model.refresher import ScreenState
from blockmon.tui.subject import JobSubject, NodeSubject, Subject


@dataclass(frozen=True)
class Choice:
    """An action that is possible now: its key, its name, and the command as it would be written."""

    key: str
    name: str
    command: str


@dataclass(frozen=True)
class _NodeAction:
    key: str
    name: str
    command: str
    write: Callable[[ScreenState, NodeInfo], str | None]
    """The arguments, or None where the node does not allow it."""


@dataclass(frozen=True)
class _JobAction:
    key: str
    name: str
    verb: str
    write: Callable[[Job], str]


def value(text: str) -> str:
    """A value for a ``command key=value`` line, quoted where it needs to be."""
    plain = bool(text) and all(char.isalnum() or char in "#-_./:@+%" for char in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _backing(state: ScreenState, node: NodeInfo) -> str | None:
    edge: EdgeInfo | None = state.graph.backing(node.name)
    return edge.child if edge is not None else None


def _stream(state: ScreenState, node: NodeInfo) -> str | None:
    if node.filter or _backing(state, node) is None:
        return None
    return f"job-id={state.jobs.unused_id('stream')} device={value(node.name)}"


def _commit(state: ScreenState, node: NodeInfo) -> str | None:
    base = _backing(state, node)
    if node.filter or base is None:
        return None
    active = state.graph.active_layer(node.name)
    middle = "" if active == node.name else f" top-node={value(node.name)}"
    return f"job-id={state.jobs.unused_id('commit')} device={value(active)}{middle} base-node={value(base)}"


def _snapshot(state: ScreenState, node: NodeInfo) -> str | None:
    # The overlay takes the node's place with those who use it. With none it would be closed again at once, and the
    # server refuses to put it between a format node and what that is made of.
    users = [edge for edge in state.graph.parents_of(node.name) if edge.parent_kind not in ("monitor", "job")]
    above = [state.graph.nodes.get(edge.parent) for edge in users if edge.parent_kind == "node"]
    if not users or any(parent is None or not parent.filter for parent in above):
        return None
    number = 1
    while f"{node.name.lstrip('#')}-snap{number}" in state.graph.nodes:
        number += 1
    name = f"{node.name.lstrip('#')}-snap{number}"
    folder = node.filename.rpartition("/")[0]
    path = f"{folder}/{name}.qcow2" if folder and not node.filename.startswith("json:") else f"{name}.qcow2"
    return f"node-name={value(node.name)} snapshot-node-name={value(name)} format=qcow2 snapshot-file={value(path)}"


def _mirror(state: ScreenState, node: NodeInfo) -> str | None:
    return f"job-id={state.jobs.unused_id('mirror')} device={value(node.name)} sync=full target="


def _backup(state: ScreenState, node: NodeInfo) -> str | None:
    return f"job-id={state.jobs.unused_id('backup')} device={value(node.name)} sync=full target="


def _resize(state: ScreenState, node: NodeInfo) -> str | None:
    above = [edge for edge in state.graph.parents_of(node.name) if edge.parent_kind == "node"]
    refused = node.read_only or any("resize" not in edge.shared for edge in above)
    return None if refused else f"node-name={value(node.name)} size={node.size}"


def _change_backing(state: ScreenState, node: NodeInfo) -> str | None:
    if node.filter or (node.backing_file is None and _backing(state, node) is None):
        return None
    active = state.graph.active_layer(node.name)
    return f"device={value(active)} image-node-name={value(node.name)} backing-file={value(node.backing_file or '')}"


def _export(state: ScreenState, node: NodeInfo) -> str | None:
    return f"type=nbd id=exp-{node.name.lstrip('#')} node-name={value(node.name)}"


def _delete(state: ScreenState, node: NodeInfo) -> str | None:
    used = any(edge.parent_kind not in ("monitor", "user") for edge in state.graph.parents_of(node.name))
    return f"node-name={value(node.name)}" if node.monitor_owned and not used else None


NODE_ACTIONS: tuple[_NodeAction, ...] = (
    _NodeAction("s", "stream: copy in what the backing chain holds", "block-stream", _stream),
    _NodeAction("c", "commit: write its data down into its backing node", "block-commit", _commit),
    _NodeAction("n", "snapshot: put a new overlay on top", "blockdev-snapshot-sync", _snapshot),
    _NodeAction("m", "mirror to another node", "blockdev-mirror", _mirror),
    _NodeAction("b", "backup to another node", "blockdev-backup", _backup),
    _NodeAction("e", "export over NBD", "block-export-add", _export),
    _NodeAction("r", "resize", "block_resize", _resize),
    _NodeAction("f", "write another backing file name into the image", "change-backing-file", _change_backing),
    _NodeAction("d", "delete the node", "blockdev-del", _delete),
)

JOB_ACTIONS: tuple[_JobAction, ...] = (
    _JobAction("p", "pause", "pause", lambda job: f"job-pause id={value(job.id)}"),
    _JobAction("r", "resume", "resume", lambda job: f"job-resume id={value(job.id)}"),
    _JobAction(
        "v", "set speed", "set-speed",
        lambda job: f"block-job-set-speed device={value(job.id)} speed={job.speed}",
    ),
    _JobAction("o", "complete", "complete", lambda job: f"job-complete id={value(job.id)}"),
    _JobAction("f", "finalize", "finalize", lambda job: f"job-finalize id={value(job.id)}"),
    # On a ready job this ends it softly: the target keeps a consistent copy. Elsewhere the two are the same.
    _JobAction(
        "c", "cancel", "cancel",
        lambda job: f"block-job-cancel device={value(job.id)}" if job.block_job else f"job-cancel id={value(job.id)}",
    ),
    _JobAction("d", "dismiss", "dismiss", lambda job: f"job-dismiss id={value(job.id)}"),
)  # fmt: skip


def node_choices(state: ScreenState, name: str) -> list[Choice]:
    """What can be done to a node."""
    node = state.graph.nodes.get(name)
    if node is None:
        return []
    found: list[Choice] = []
    for action in NODE_ACTIONS:
        if action.command in state.commands:
            arguments = action.write(state, node)
            if arguments is not None:
                found.append(Choice(action.key, action.name, f"{action.command} {arguments}"))
    return found


def job_choices(state: ScreenState, serial: int) -> list[Choice]:
    """What can be done to a job in its present status."""
    job = state.jobs.by_serial(serial)
    if job is None:
        return []
    verbs = job.verbs()
    found: list[Choice] = []
    for action in JOB_ACTIONS:
        command = action.write(job)
        if action.verb in verbs and command.split(" ", 1)[0] in state.commands:
            found.append(Choice(action.key, action.name, command))
    return found


def choices(state: ScreenState, subject: Subject | None) -> list[Choice]:
    """What can be done to *subject*; nothing, for things that no command takes."""
    if isinstance(subject, NodeSubject):
        return node_choices(state, subject.name)
    if isinstance(subject, JobSubject):
        return job_choices(state, subject.serial)
    return []
