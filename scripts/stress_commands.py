"""Random QMP commands for stress.py: what people do, with names of what is there, and nonsense made from the schema."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from engine.graph.node import Node

if TYPE_CHECKING:
    from stress import World

Arguments = dict[str, Any]

MIB = 1 << 20
VERBS = ("pause", "resume", "cancel", "complete", "finalize", "dismiss")
SKIPPED = {"quit", "qmp_capabilities", "human-monitor-command", "blockdev-add", "object-add"}
"""Commands that are not made up from the schema: they end the monitor, or have a generator of their own."""


def bare(node: Node) -> bool:
    """Whether what is written to *node* goes to the bytes of a qcow2 image, which that would break."""
    if node.driver.name == "qcow2":
        return False
    if not node.children:
        return node.filename.endswith((".qcow2", ".img"))
    return any(bare(edge.child) for edge in list(node.children.values()))


def private(node: Node) -> bool:
    """Whether *node* is one of those that only the compared copies use, or leads to one."""
    return node.name.startswith("private") or any(private(edge.child) for edge in list(node.children.values()))


class Player:
    """Makes up commands from a seed and what is there."""

    def __init__(self, world: World, seed: str, fraction: float) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.fraction = fraction
        """Share of commands made up from the schema alone, mostly nonsense."""
        schema = world.engine.execute("query-qmp-schema")
        self.types = {info["name"]: info for info in schema}
        self.commands = [i for i in schema if i["meta-type"] == "command" and i["name"] not in SKIPPED]

    # -- what is there ---------------------------------------------------------------------------------------

    def _pick(self, names: list[str], otherwise: str = "nothing") -> str:
        if not names or self.rng.random() < 0.02:
            return otherwise
        return self.rng.choice(names)

    def node(self) -> str:
        nodes = list(self.world.engine.graph.nodes.values())
        names = [node.name for node in nodes if not private(node) and not bare(node)]
        plain = [name for name in names if not name.startswith("#") and not name.endswith("-file")]
        return self._pick(plain if self.rng.random() < 0.85 else names)

    def device(self) -> str:
        names = [device.id for device in list(self.world.engine.machine.devices)]
        return self._pick([name for name in names if name and not name.startswith("private")])

    def node_or_device(self) -> str:
        return self.node() if self.rng.random() < 0.8 else self.device()

    def job(self) -> str:
        return self._pick([job.id for job in list(self.world.engine.jobs.jobs) if not job.id.startswith("private")])

    def new_node(self) -> str:
        return f"n{self.rng.randrange(24)}"

    def new_job(self) -> str:
        return f"j{self.rng.randrange(8)}"

    def image(self, kind: str | None = None) -> str:
        kind = kind or self.rng.choice(("qcow2", "raw"))
        return str(self.world.folder / f"{kind[0]}{self.rng.randrange(10)}.{kind}")

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, **options: Any) -> Arguments:
        """Some of the *options*; callables are called; _ stands for -."""
        return {
            key.replace("_", "-"): value() if callable(value) else value
            for key, value in options.items()
            if self.chance(0.35)
        }

    # -- from the schema -------------------------------------------------------------------------------------

    def from_schema(self) -> tuple[str, Arguments]:
        info = self.rng.choice(self.commands)
        arguments = self._object(self.types[info["arg-type"]], 0)
        name = info["name"]
        if name == "nbd-server-start":
            arguments = {"addr": {"type": "unix", "data": {"path": str(self.world.folder / "nbd.sock")}}}
        if name == "transaction":
            return self.transaction()
        if name in ("drive-mirror", "drive-backup", "blockdev-snapshot-sync", "blockdev-change-medium"):
            key = {"blockdev-snapshot-sync": "snapshot-file", "blockdev-change-medium": "filename"}.get(name, "target")
            arguments["format"] = self.rng.choice(("qcow2", "raw"))
            arguments[key] = self.image(arguments["format"])
        if name in ("x-blockdev-reopen", "blockdev-reopen"):
            arguments = {"options": [self.reopened()]}
        return name, arguments

    def _object(self, info: dict[str, Any], depth: int) -> Arguments:
        out: Arguments = {}
        for member in info["members"]:
            if "default" in member and not self.chance(0.3 if depth < 3 else 0.0):
                continue
            out[member["name"]] = self._value(member["name"], member["type"], depth + 1)
        if "tag" in info:
            chosen = out.get(info["tag"])
            for variant in info["variants"]:
                if variant["case"] == chosen:
                    out |= self._object(self.types[variant["type"]], depth + 1)
        return out

    def _value(self, name: str, type_name: str, depth: int) -> Any:
        info, rng = self.types[type_name], self.rng
        match info["meta-type"]:
            case "object":
                return self._object(info, depth)
            case "array":
                return [self._value(name, info["element-type"], depth + 1) for _ in range(rng.randrange(3))]
            case "alternate":
                return self._value(name, rng.choice(info["members"])["type"], depth)
            case "enum":
                values = [member["name"] for member in info["members"]]
                values = [value for value in values if value not in ("host_device", "blkreplay", "raw")] or values
                return rng.choice(values)
        match info["json-type"]:
            case "string":
                return self._string(name)
            case "int":
                return self._integer(name)
            case "boolean":
                return self.chance(0.5)
            case "null":
                return None
            case "number":
                return rng.random()
        return rng.choice((None, 1, "x", True, []))

    def _string(self, name: str) -> str:
        if name in ("node-name", "node", "target", "overlay", "child", "parent", "file", "image", "backing", "test"):
            return self.node()
        if name in ("filename", "backing-file", "snapshot-file", "path", "dir", "data"):
            return self.image()
        if name in ("device", "base-node", "top-node", "bottom", "replaces"):
            return self.node_or_device()
        if name == "id":
            return self.rng.choice((self.device, self.job, self.node))()
        if name == "job-id":
            return self.new_job()
        if name in ("name", "bitmap", "bitmaps"):
            return f"b{self.rng.randrange(3)}"
        if name in ("snapshot-node-name", "filter-node-name"):
            return self.new_node()
        return self.rng.choice(("x", "", "g0", "iothread0"))

    def _integer(self, name: str) -> int:
        if "bps" in name:
            return self.rng.choice((0, 0, 20 * MIB))
        if "iops" in name:
            return self.rng.choice((0, 0, 500))
        if name in ("size", "write-threshold", "len", "length"):
            return self.rng.choice((0, 512, 65536, 3 * MIB + 512, 6 * MIB))
        if name == "granularity":
            return self.rng.choice((512, 4096, 65536, 3))
        return self.rng.choice((-1, 0, 1, 2, 512, 65536, MIB))

    # -- nodes -----------------------------------------------------------------------------------------------

    def tree(self, name: str | None, depth: int = 0) -> Arguments:
        """Options of a node to add, with its children inline or by name."""
        rng = self.rng
        common: Arguments = {"node-name": name} if name is not None else {}
        common |= self.some(read_only=lambda: self.chance(0.5), discard=lambda: rng.choice(("unmap", "ignore")))
        common |= self.some(detect_zeroes=lambda: rng.choice(("off", "on", "unmap")))
        if common.get("detect-zeroes") == "unmap":
            common["discard"] = "unmap"
        kind = rng.choice(
            ("qcow2",) * 6
            + ("raw", "raw", "raw", "throttle", "quorum", "copy-on-read", "blkdebug", "null-co", "null-aio", "compress")
            + ("preallocate", "blkverify", "blklogwrites", "copy-before-write", "snapshot-access")
        )
        if depth > 2 and kind not in ("null-co", "null-aio"):
            kind = "qcow2" if self.chance(0.5) else "raw"

        def below() -> Any:
            if self.chance(0.35) or depth > 2:
                return self.node()
            return self.tree(self.new_node() if self.chance(0.3) else None, depth + 1)

        def below_or_file() -> Any:
            file = {"driver": "file", "filename": self.image("raw")}
            return file if self.chance(0.6) else below()

        match kind:
            case "qcow2":
                path = self.image("qcow2")
                common |= {"file": {"driver": "file", "filename": path}}
                if name is not None and self.chance(0.5):
                    common["file"]["node-name"] = f"{name}-file"
                if self.chance(0.15):
                    rule = {
                        "event": rng.choice(("l2_update", "write_aio", "read_aio", "flush_to_disk", "cluster_alloc"))
                    }
                    rule |= {"errno": rng.choice((5, 28)), "once": True}
                    common["file"] = {"driver": "blkdebug", "image": common["file"], "inject-error": [rule]}
                common |= self.some(lazy_refcounts=True, backing=lambda: None if self.chance(0.3) else below())
            case "raw":
                common |= {"file": below_or_file()}
                common |= self.some(offset=lambda: rng.choice((0, 512, 65536)))
                if isinstance(common["file"], dict) and common["file"]["driver"] == "qcow2":
                    common.pop("offset", None)
            case "throttle":
                common |= {"throttle-group": f"g{rng.randrange(3)}", "file": below()}
            case "quorum":
                count = rng.choice((1, 2, 3))
                common |= {"vote-threshold": rng.randrange(1, 3), "children": [below_or_file() for _ in range(count)]}
                common |= self.some(read_pattern=lambda: rng.choice(("quorum", "fifo")), blkverify=False)
            case "blkdebug":
                common |= {"image": below()}
                common["inject-error"] = [
                    {"event": "none", "iotype": rng.choice(("read", "write", "flush")), "once": True, "errno": 28}
                ]
            case "null-co" | "null-aio":
                common |= {"size": 4 * MIB, "read-zeroes": self.chance(0.5)}
            case "blkverify":
                common |= {"test": below_or_file(), "raw": below_or_file()}
            case "blklogwrites":
                common |= {"file": below(), "log": {"driver": "file", "filename": self.image("raw")}}
            case "copy-before-write":
                common |= {"file": below(), "target": below()}
            case _:
                common |= {"file": below()}
        return {"driver": kind, **common}

    def reopened(self) -> Arguments:
        graph = self.world.engine.graph
        name = self.node()
        node = graph.nodes.get(name)
        options: Arguments = {"driver": node.driver.name if node is not None else "raw", "node-name": name}
        if node is not None:
            options |= {key: edge.child.name for key, edge in list(node.children.items()) if "." not in key}
            options |= {
                key: value for key, value in node.options.items() if not isinstance(value, dict) and key != "children"
            }
        if self.chance(0.3):
            options["backing"] = self.node() if self.chance(0.6) else None
        options |= self.some(read_only=lambda: self.chance(0.5), discard=lambda: self.rng.choice(("unmap", "ignore")))
        return options

    # -- what people do --------------------------------------------------------------------------------------

    def command(self) -> tuple[str, Arguments]:
        if self.chance(self.fraction):
            return self.from_schema()
        return self.rng.choice(self.recipes)(self)

    def add(self) -> tuple[str, Arguments]:
        return "blockdev-add", self.tree(self.new_node())

    def delete(self) -> tuple[str, Arguments]:
        return "blockdev-del", {"node-name": self.node()}

    def verb(self) -> tuple[str, Arguments]:
        verb = self.rng.choice(VERBS)
        if self.chance(0.2):
            return "block-job-cancel", {"device": self.job(), "force": True}
        if self.chance(0.2):
            return "block-job-set-speed", {"device": self.job(), "speed": self.rng.choice((0, MIB, 64 * MIB))}
        return f"job-{verb}", {"id": self.job()}

    def _job_options(self) -> Arguments:
        return {"job-id": self.new_job()} | self.some(
            speed=lambda: self.rng.choice((0, MIB, 16 * MIB)),
            auto_finalize=lambda: self.chance(0.5),
            auto_dismiss=lambda: self.chance(0.5),
        )

    def _on_error(self) -> Arguments:
        policies = ("report", "ignore", "stop", "enospc")
        return self.some(
            on_source_error=lambda: self.rng.choice(policies), on_target_error=lambda: self.rng.choice(policies)
        )

    def mirror(self) -> tuple[str, Arguments]:
        out = self._job_options() | self._on_error()
        out |= {"device": self.node_or_device(), "sync": self.rng.choice(("full", "full", "top", "none"))}
        out |= self.some(
            copy_mode=lambda: self.rng.choice(("background", "write-blocking")),
            replaces=self.node,
            filter_node_name=self.new_node,
        )
        if self.chance(0.3):
            kind = self.rng.choice(("qcow2", "raw"))
            out |= {"target": self.image(kind), "format": kind} | self.some(mode="existing", node_name=self.new_node)
            out.pop("filter-node-name", None)
            return "drive-mirror", out
        return "blockdev-mirror", out | {"target": self.node()}

    def backup(self) -> tuple[str, Arguments]:
        out = self._job_options() | self._on_error()
        sync = self.rng.choice(("full", "full", "top", "none", "bitmap", "incremental"))
        out |= {"device": self.node_or_device(), "sync": sync}
        if sync in ("bitmap", "incremental"):
            out |= {"bitmap": f"b{self.rng.randrange(3)}", "bitmap-mode": "on-success"}
        out |= self.some(compress=lambda: self.chance(0.5), filter_node_name=self.new_node)
        if self.chance(0.3):
            kind = self.rng.choice(("qcow2", "raw"))
            return "drive-backup", out | {"target": self.image(kind), "format": kind} | self.some(mode="existing")
        return "blockdev-backup", out | {"target": self.node()}

    def commit(self) -> tuple[str, Arguments]:
        out = self._job_options() | {"device": self.node_or_device()}
        out |= self.some(base_node=self.node, top_node=self.node, filter_node_name=self.new_node)
        return "block-commit", out

    def stream(self) -> tuple[str, Arguments]:
        out = self._job_options() | {"device": self.node_or_device()}
        out |= self.some(filter_node_name=self.new_node)
        if self.chance(0.4):
            out |= {self.rng.choice(("base-node", "bottom")): self.node()}
        return "block-stream", out

    def create(self) -> tuple[str, Arguments]:
        options: Arguments = {"driver": "qcow2", "size": self.rng.choice((4 * MIB, 4 * MIB + 512, 8 * MIB))}
        options["file"] = self.node()
        options |= self.some(preallocation=lambda: self.rng.choice(("off", "metadata", "falloc", "full")))
        return "blockdev-create", {"job-id": self.new_job(), "options": options}

    def amend(self) -> tuple[str, Arguments]:
        options = {"driver": "qcow2"} | self.some(compat=lambda: self.rng.choice(("0.10", "1.1")))
        options |= self.some(lazy_refcounts=lambda: self.chance(0.5), size=lambda: 4 * MIB, refcount_bits=16)
        return "x-blockdev-amend", {"job-id": self.new_job(), "node-name": self.node(), "options": options}

    def snapshot(self) -> tuple[str, Arguments]:
        if self.chance(0.5):
            return "blockdev-snapshot", {"node": self.node_or_device(), "overlay": self.node()}
        out = {"node-name": self.node(), "snapshot-file": self.image("qcow2"), "format": "qcow2"}
        return "blockdev-snapshot-sync", out | {"snapshot-node-name": self.new_node()} | self.some(mode="existing")

    def internal(self) -> tuple[str, Arguments]:
        kind = self.rng.choice(("-internal-sync", "-internal-sync", "-delete-internal-sync"))
        return f"blockdev-snapshot{kind}", {"device": self.node_or_device(), "name": f"s{self.rng.randrange(4)}"}

    def bitmap(self) -> tuple[str, Arguments]:
        verb = self.rng.choice(("add", "add", "add", "remove", "clear", "enable", "disable", "merge"))
        name = f"b{self.rng.randrange(3)}"
        if verb == "merge":
            out: Arguments = {"target": name, "bitmaps": [f"b{self.rng.randrange(3)}"]}
            if self.chance(0.3):
                out["bitmaps"].append({"node": self.node(), "name": name})
        else:
            out = {"name": name}
        if verb == "add":
            out |= self.some(persistent=lambda: self.chance(0.6), disabled=lambda: self.chance(0.3), granularity=4096)
        return f"block-dirty-bitmap-{verb}", {"node": self.node()} | out

    def transaction(self) -> tuple[str, Arguments]:
        actions = []
        makers = (self.mirror, self.backup, self.bitmap, self.snapshot, self.internal)
        allowed = {member["name"] for member in self._action_types()}
        for _ in range(self.rng.randrange(1, 5)):
            name, arguments = self.rng.choice(makers)()
            if name in allowed or self.chance(0.05):
                actions.append({"type": name, "data": arguments})
        out: Arguments = {"actions": actions}
        if self.chance(0.3):
            out["properties"] = {"completion-mode": self.rng.choice(("individual", "grouped"))}
        return "transaction", out

    def _action_types(self) -> list[dict[str, Any]]:
        command = next(info for info in self.commands if info["name"] == "transaction")
        members = self.types[command["arg-type"]]["members"]
        array = self.types[next(member["type"] for member in members if member["name"] == "actions")]
        union = self.types[array["element-type"]]
        found: list[dict[str, Any]] = self.types[union["members"][0]["type"]]["members"]
        return found

    def reopen(self) -> tuple[str, Arguments]:
        return "blockdev-reopen", {"options": [self.reopened() for _ in range(self.rng.choice((1, 1, 2)))]}

    def change(self) -> tuple[str, Arguments]:
        quorums = [n.name for n in list(self.world.engine.graph.nodes.values()) if n.driver.name == "quorum"]
        parent = self._pick(quorums, self.node())
        if self.chance(0.5):
            return "x-blockdev-change", {"parent": parent, "node": self.node()}
        return "x-blockdev-change", {"parent": parent, "child": f"children.{self.rng.randrange(4)}"}

    def resize(self) -> tuple[str, Arguments]:
        size = self.rng.choice((4 * MIB, 4 * MIB, 6 * MIB, 3 * MIB + 512, 65536))
        return "block_resize", {"node-name": self.node(), "size": size}

    def throttle(self) -> tuple[str, Arguments]:
        limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        if self.chance(0.6):
            limits[self.rng.choice(("bps", "bps_wr"))] = 8 * MIB
            limits[self.rng.choice(("iops", "iops_rd"))] = 300
        return "block_set_io_throttle", {"id": self.device(), **limits} | self.some(group=f"g{self.rng.randrange(3)}")

    def group(self) -> tuple[str, Arguments]:
        name = self.rng.choice(("g0", "g1", "g2"))
        if self.chance(0.2):
            return "object-del", {"id": name}
        if self.chance(0.3):
            value = {"bps-total": self.rng.choice((0, 8 * MIB)), "iops-total": self.rng.choice((0, 400))}
            return "qom-set", {"path": name, "property": "limits", "value": value}
        if self.chance(0.2):
            return self.rng.choice(
                (
                    ("object-add", {"qom-type": "iothread", "id": "iothread0"}),
                    ("object-del", {"id": "iothread0"}),
                    ("x-blockdev-set-iothread", {"node-name": self.node(), "iothread": "iothread0", "force": True}),
                    ("x-blockdev-set-iothread", {"node-name": self.node(), "iothread": None, "force": True}),
                )
            )
        return "object-add", {"qom-type": "throttle-group", "id": name, "limits": {"bps-total": 16 * MIB}}

    def plug(self) -> tuple[str, Arguments]:
        name = f"d{self.rng.randrange(8)}"
        if self.chance(0.3):
            return "device_del", {"id": self.device()}
        model = self.rng.choice(
            ("virtio-blk-pci", "virtio-blk-pci", "virtio-scsi-pci", "scsi-hd", "scsi-cd", "ide-cd", "ide-hd", "floppy")
        )
        out = {"driver": model, "id": name}
        if model != "virtio-scsi-pci" and (model in ("virtio-blk-pci", "ide-hd", "scsi-hd") or self.chance(0.5)):
            out["drive"] = self.node()
        out |= self.some(werror=lambda: self.rng.choice(("stop", "report", "ignore")), iothread="iothread0")
        return "device_add", out

    def medium(self) -> tuple[str, Arguments]:
        device = {"id": self.device()}
        return self.rng.choice(
            (
                ("blockdev-open-tray", device | self.some(force=True)),
                ("blockdev-close-tray", device),
                ("blockdev-remove-medium", device),
                ("blockdev-insert-medium", device | {"node-name": self.node()}),
                ("eject", device | self.some(force=True)),
                ("blockdev-change-medium", device | {"filename": self.image("qcow2"), "format": "qcow2"}),
                ("x-blockmon-guest-tray", {"device": device["id"]} | self.some(lock=True, open=True)),
            )
        )

    def guest(self) -> tuple[str, Arguments]:
        name = f"guest{self.rng.randrange(4)}"
        if self.chance(0.3):
            guests = [guest for guest in list(self.world.engine.guests) if guest != "private-g"]
            return "x-blockmon-guest-del", {"id": self._pick(guests)}
        out: Arguments = {
            "id": name,
            "iops": 150,
            "write-percent": 70,
            "request-size": self.rng.choice((512, 4096, 131072)),
        }
        out |= {"seed": self.rng.randrange(1000)}
        out |= {"device": self.device()} if self.chance(0.5) else {"node-name": self.node()}
        return "x-blockmon-guest-add", out

    def request(self) -> tuple[str, Arguments]:
        operation = self.rng.choice(("read", "write", "write-zeroes", "discard", "flush"))
        out: Arguments = {"device": self.device(), "operation": operation}
        out |= {"offset": 4096 * self.rng.randrange(1024), "length": self.rng.choice((512, 65536))}
        return "x-blockmon-guest-request", out if operation == "read" else out | {"pattern": 7}

    def io(self) -> tuple[str, Arguments]:
        at = f"{64 * self.rng.randrange(64)}k 64k"
        verbs = ["flush", "map", "info", "aio_flush", "length", "truncate 4M", "reopen"]
        for verb in ("write -P 5", "read", "write -z -u", "discard", "write -c", "aio_write -P 3", "write -f"):
            verbs.append(f"{verb} {at}")
        lines = [f'qemu-io {self.node_or_device()} "{self.rng.choice(verbs)}"'] * 3
        lines += ["info block -v", "info block-jobs", "savevm s1", "delvm s1", "loadvm s1", "info snapshots"]
        lines += [f"commit {self.node_or_device()}", f"drive_del {self.node_or_device()}"]
        return "human-monitor-command", {"command-line": self.rng.choice(lines * 2 + lines[:1] * 12)}

    def look(self) -> tuple[str, Arguments]:
        names = ["query-block", "query-blockstats", "query-jobs", "query-block-jobs", "query-named-block-nodes"]
        names += ["x-debug-query-block-graph", "x-blockmon-query-graph", "query-iothreads", "query-status"]
        return self.rng.choice(names), {}

    def run(self) -> tuple[str, Arguments]:
        return self.rng.choice(("stop", "cont", "cont", "system_reset")), {}

    recipes = (
        *(add,) * 5,
        *(delete,) * 2,
        *(verb,) * 6,
        *(mirror, backup, commit, stream) * 2,
        *(snapshot, bitmap, reopen, plug, guest, io, transaction) * 2,
        *(create, amend, internal, change, resize, throttle, group, medium, request, look, run),
    )
