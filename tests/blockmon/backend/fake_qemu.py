"""QEMUs of several versions: what they answer is 7.2's as recorded, put into the shape of their time."""

import copy
import json
from pathlib import Path
from typing import Any

from tests.blockmon.backend.wire_server import Fail, WireServer

RECORDED = Path(__file__).parents[1] / "model" / "recorded"

_OLD = [
    *("qmp_capabilities", "query-commands", "query-qmp-schema", "query-version", "query-status", "quit", "eject"),
    *("query-named-block-nodes", "query-block", "query-blockstats", "query-block-jobs", "human-monitor-command"),
    *("qom-get", "qom-list", "qom-set", "blockdev-add", "blockdev-del", "blockdev-mirror", "block-stream"),
    *("block-job-cancel", "block-job-pause", "block-job-resume", "block-job-complete", "block-job-set-speed"),
    *("block_resize", "block_set_io_throttle", "blockdev-open-tray", "blockdev-snapshot-sync", "blockdev-backup"),
    *("block-dirty-bitmap-add", "block-dirty-bitmap-clear", "transaction", "stop", "system_reset", "device_del"),
    *("block-commit", "change-backing-file", "blockdev-close-tray", "device_add", "object-add", "drive-mirror"),
]
_NEW = [
    *("query-jobs", "job-cancel", "job-pause", "job-resume", "job-complete", "job-finalize", "job-dismiss"),
    *("query-block-exports", "block-export-add", "block-export-del", "blockdev-reopen", "blockdev-create"),
    *("x-debug-query-block-graph", "block-latency-histogram-set", "nbd-server-start", "nbd-server-stop"),
    *("block-set-write-threshold", "blockdev-change-medium", "blockdev-insert-medium", "blockdev-remove-medium"),
    *("block-dirty-bitmap-remove", "block-dirty-bitmap-disable", "block-dirty-bitmap-enable", "x-blockdev-change"),
]

AGES = ("2.12", "7.2", "9.2")


class FakeQemu(WireServer):
    """A PC with a mirror running, of version *age*. `asked` is every command with its arguments, as it came."""

    def __init__(self, path: Path, age: str) -> None:
        super().__init__(path)
        major, minor = map(int, age.split("."))
        self.greeting = json.dumps(
            {"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""},
                     "capabilities": []}}
        ).encode() + b"\r\n"  # fmt: skip
        self.asked: list[tuple[str, dict[str, Any]]] = []
        told = json.loads((RECORDED / "pc_7.2_mirror.json").read_text())
        names = [*_OLD, *(_NEW if major > 2 else ())]
        nodes, stats, devices = told["nodes"], told["stats"], told["devices"]
        if major == 2:
            # Bitmaps are told of by devices, with a status only.
            for node in nodes:
                node.pop("dirty-bitmaps", None)
            for device in devices:
                if device.get("inserted"):
                    device["dirty-bitmaps"] = [
                        {"name": "daily", "count": 65536, "granularity": 65536, "status": "active"}
                    ]
        if major >= 9:
            names.remove("x-debug-query-block-graph")
            by_id = {entry["id"]: entry for entry in told["debug"]["nodes"]}
            for node in nodes:
                node["children"] = [
                    {"child": edge["name"], "node-name": by_id[edge["child"]]["name"]}
                    for edge in told["debug"]["edges"]
                    if by_id[edge["parent"]]["name"] == node["node-name"]
                ]
                node["active"] = True
        (job,) = told["block_jobs"]
        if major == 2:
            job = {name: value for name, value in job.items() if name not in ("auto-finalize", "auto-dismiss", "error")}
            del job["status"]
        self.commands_known = names
        fixed: dict[str, Any] = {
            "query-commands": [{"name": name} for name in names],
            "query-qmp-schema": _schema(names, features=major > 3),
            "query-version": {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""},
            "query-status": {"running": True, "status": "running"},
            "query-block": devices,
            "x-debug-query-block-graph": told["debug"],
            "query-block-exports": told["exports"],
            "query-block-jobs": [job],
            "query-jobs": [{"id": job["device"], "type": job["type"], "status": told["block_jobs"][0]["status"],
                            "current-progress": job["offset"], "total-progress": job["len"]}],
            "qom-get": "virtio-blk-pci",
            "human-monitor-command": "",
        }  # fmt: skip
        for name in names:
            answer = fixed.get(name, {})
            self.answers[name] = lambda arguments, answer=answer: copy.deepcopy(answer)

        def named(arguments: dict[str, Any]) -> Any:
            if "flat" in arguments and major < 5:
                raise Fail("Parameter 'flat' is unexpected")
            return copy.deepcopy(nodes)

        self.answers["query-named-block-nodes"] = named
        self.answers["query-blockstats"] = lambda arguments: copy.deepcopy(
            told["node_stats"] if arguments.get("query-nodes") else stats
        )

    def _take(self, message: dict[str, Any], writer: Any) -> None:
        self.asked.append((str(message.get("execute", message.get("exec-oob"))), message.get("arguments", {})))
        if message["execute"] not in self.answers:
            self.answers[message["execute"]] = _unknown(message["execute"])
        super()._take(message, writer)


def _unknown(command: str) -> Any:
    def answer(arguments: dict[str, Any]) -> Any:
        raise Fail(f"The command {command} has not been found")

    return answer


def _schema(names: list[str], *, features: bool) -> list[dict[str, Any]]:
    """An introspection in which a command takes any members that are strings."""
    members = [
        {"name": name, "type": "str", "default": None}
        for name in ("id", "device", "node-name", "command-line", "target", "sync", "job-id", "path", "property")
    ]
    found: list[dict[str, Any]] = [
        {"name": "str", "meta-type": "builtin", "json-type": "string"},
        {"name": "any", "meta-type": "any"},
        {"name": "0", "meta-type": "object", "members": members},
        {"name": "1", "meta-type": "object", "members": []},
    ]
    for name in names:
        entry: dict[str, Any] = {"name": name, "meta-type": "command", "arg-type": "0", "ret-type": "1"}
        if features and name.startswith("x-"):
            entry["features"] = ["unstable"]
        found.append(entry)
    return found
