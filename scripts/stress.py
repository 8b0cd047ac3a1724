#!/usr/bin/env python3
"""Play random QMP commands, good and bad, on an engine while guests write, and watch that it stays sound.

    scripts/stress.py [--seed N] [--seconds S] [--threads T] [--log FILE]
    scripts/stress.py --replay FILE

What counts as a failure: a traceback in the log, a command without an answer for ten seconds, a job whose events make
no sense, permissions that contradict one another, a node that stays drained, an image that qemu-img finds corrupt, a
copy that differs from its source. Then the commands so far are in the log, one JSON object a line, for --replay (which
plays them one after the other; what needs several threads at once may take more than one go). %DIR% stands for the
folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stress_commands import MIB, Arguments, Player

from engine.devices.guest import Guest
from engine.engine import Engine
from engine.errors import QMPError
from engine.graph.node import Node
from engine.jobs.states import TRANSITIONS
from engine.jobs.types import JobStatus

ANSWER_WITHIN = 10.0
CLOSE_WITHIN = 20.0
PATIENT = {"x-blockmon-guest-request", "human-monitor-command"}
"""Commands that wait as long as the guests are stopped."""


class Failed(Exception):
    """The engine is not sound."""


class Watch(logging.Handler):
    """Collects what went wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.problems: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name == "asyncio":
            self.problems.append(logging.Formatter("%(name)s: %(message)s").format(record))


class World:
    """An engine with a folder of images, what happened on it so far, and its checks."""

    def __init__(self, folder: Path, log: Path, watch: Watch) -> None:
        self.folder = folder
        self.watch = watch
        self.engine = Engine()
        self.log = log.open("w", encoding="utf-8")
        self.lock = threading.Lock()
        self.waiting: dict[int, tuple[float, str, Arguments]] = {}
        self.counts: dict[str, list[int]] = {}
        self.states: dict[str, JobStatus] = {}
        self.spoilt: set[str] = set()
        self._number = 0
        self.engine.subscribe(self._take)

    def problem(self, text: str) -> None:
        self.watch.problems.append(text)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] != "JOB_STATUS_CHANGE":
            return
        job, status = event["data"]["id"], JobStatus(event["data"]["status"])
        before = self.states.get(job, JobStatus.UNDEFINED)
        if before is JobStatus.NULL:
            before = JobStatus.UNDEFINED
        if status not in TRANSITIONS[before]:
            self.problem(f"job {job}: {before} -> {status}")
        self.states[job] = status

    # -- commands --------------------------------------------------------------------------------------------

    def start(self, command: str, arguments: Arguments) -> Future[Any]:
        with self.lock:
            self._number += 1
            number = self._number
            line = json.dumps({"execute": command, "arguments": arguments}, default=str)
            self.log.write(line.replace(str(self.folder), "%DIR%") + "\n")
            self.log.flush()
            self.waiting[number] = (time.monotonic(), command, arguments)
        future = self.engine.submit(command, arguments)

        def done(future: Future[Any]) -> None:
            with self.lock:
                self.waiting.pop(number, None)
                self.counts.setdefault(command, [0, 0])[1 if future.exception() else 0] += 1

        future.add_done_callback(done)
        return future

    def do(self, command: str, arguments: Arguments | None = None, patience: float = ANSWER_WITHIN) -> Any:
        """Errors: QMPError, TimeoutError."""
        return self.start(command, arguments or {}).result(patience)

    def attempt(self, command: str, arguments: Arguments | None = None) -> Any:
        """The answer, None for an error or for none in time (which overdue() reports)."""
        try:
            return self.do(command, arguments, 1.0 if command in PATIENT else ANSWER_WITHIN + 1)
        except (QMPError, TimeoutError):
            return None

    # -- checks ----------------------------------------------------------------------------------------------

    def overdue(self) -> str | None:
        now = time.monotonic()
        with self.lock:
            for begun, command, arguments in self.waiting.values():
                if now - begun > ANSWER_WITHIN * (3 if command in PATIENT else 1):
                    return f"no answer to {command} {json.dumps(arguments, default=str)}"
        return None

    def check_graph(self) -> None:
        """Permissions agree, edges are linked at both ends. Takes place on the control plane."""
        graph = self.engine.graph
        for node in graph.nodes.values():
            for edge in node.parents:
                if edge.child is not node:
                    self.problem(f"edge {edge} is listed at {node}")
                if isinstance(edge.parent, Node) and edge.parent.children.get(edge.name) is not edge:
                    self.problem(f"{edge} is not known as a child to {edge.parent}")
                for other in node.parents:
                    if other is not edge and edge.perm & ~other.shared:
                        self.problem(f"{edge} takes {edge.perm!r}, {other} shares {other.shared!r}")
            for name, edge in node.children.items():
                if edge.name != name or edge.parent is not node or edge not in edge.child.parents:
                    self.problem(f"child {name} of {node} is {edge}")
                if edge.child.closed or graph.nodes.get(edge.child.name) is not edge.child:
                    self.problem(f"{edge} leads to a node that is gone")
        for backend in graph.backends:
            if backend.root is not None and backend.root not in backend.root.child.parents:
                self.problem(f"back end {backend.name!r} is not among the parents of its node")

    def check_idle(self) -> None:
        """Nothing is left of jobs and drains. On the control plane, when no command and no job runs."""
        self.check_graph()
        for node in self.engine.graph.nodes.values():
            if node.quiesce_count:
                self.problem(f"{node} stays drained ({node.quiesce_count})")
            if node.pins:
                self.problem(f"{node} stays pinned ({node.pins})")
            for edge in node.parents:
                if edge.parent.parent_kind == "job":
                    self.problem(f"{edge} of a job is left")
                if edge.frozen:
                    self.problem(f"{edge} stays frozen")
                if edge.quiesces_parent:
                    self.problem(f"{edge} keeps its parent drained")
        for backend in self.engine.graph.backends:
            if backend.door.closed:
                self.problem(f"the door of back end {backend.title!r} stays closed")

    # -- the end ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End guests and jobs."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            self.attempt("cont")
            for guest in list(self.engine.guests):
                self.attempt("x-blockmon-guest-del", {"id": guest})
            jobs = self.attempt("query-jobs") or []
            for job in jobs:
                state: str = job["status"]
                name: Arguments = {"id": job["id"]}
                if state == "concluded":
                    self.attempt("job-dismiss", name)
                elif state == "pending":
                    self.attempt("job-finalize", name)
                elif state not in ("aborting", "null"):
                    self.attempt("block-job-cancel", {"device": job["id"], "force": True})
                    self.attempt("job-cancel", name)
            if not jobs and not self.waiting:
                break
            time.sleep(0.05)
        else:
            self.problem(f"still busy after 30 s: {self.attempt('query-jobs')} {list(self.waiting.values())}")

    def close(self) -> None:
        thread = threading.Thread(target=self.engine.close, daemon=True)
        thread.start()
        thread.join(CLOSE_WITHIN)
        if thread.is_alive():
            self.problem("close() hangs")
            faulthandler.dump_traceback(all_threads=True)
        self.log.close()

    def check_images(self) -> None:
        if shutil.which("qemu-img") is None:
            return
        for image in sorted(self.folder.glob("*.qcow2")):
            if image.stat().st_size < 512 or image.name in self.spoilt:
                continue
            alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(image)}}
            told = subprocess.run(
                ["qemu-img", "check", f"json:{json.dumps(alone)}"], capture_output=True, text=True, timeout=60
            )
            if told.returncode not in (0, 3):
                self.problem(
                    f"qemu-img check {image.name}: {told.returncode}\n{told.stdout[-600:]}{told.stderr[-600:]}"
                )


class Copies:
    """Copies that must be right: nodes nobody else touches, a guest that writes, and all that is done to a job."""

    def __init__(self, world: World, seed: str) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.done = 0

    def round(self) -> None:
        rng, do, folder = self.rng, self.world.do, self.world.folder
        for name, kind in (("private-s", "private-s.img"), ("private-t", "private-t.img")):
            path = folder / kind
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M"], check=True, timeout=20)
            do(
                "blockdev-add",
                {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(path)}},
            )
        ends: list[dict[str, Any]] = []
        quit_watch = self.world.engine.subscribe(
            lambda event: (
                ends.append(event)
                if event["event"].startswith("BLOCK_JOB_C") and event["data"]["device"] == "private-j"
                else None
            )
        )
        try:
            do("device_add", {"driver": "virtio-blk-pci", "id": "private-d", "drive": "private-s"})
            do("x-blockmon-guest-add", {"id": "private-g", "device": "private-d", "iops": 400, "write-percent": 80})
            mirror = rng.random() < 0.6
            arguments: Arguments = {"job-id": "private-j", "device": "private-s", "target": "private-t", "sync": "full"}
            if mirror and rng.random() < 0.5:
                arguments["copy-mode"] = "write-blocking"
            if not mirror:
                # It copies what is there at its start, so nothing may be written after that.
                guest = self.world.engine.guests["private-g"]
                do("x-blockmon-guest-del", {"id": "private-g"})
                self._join(guest)
            do("blockdev-mirror" if mirror else "blockdev-backup", arguments)
            until = time.monotonic() + 20
            completed = False
            while not ends and time.monotonic() < until:
                verb = rng.choice(("pause", "resume"))
                self.world.attempt(f"job-{verb}", {"id": "private-j"})
                self.world.attempt("block-job-set-speed", {"device": "private-j", "speed": rng.choice((0, 4 * MIB))})
                ready = any(j["id"] == "private-j" and j["status"] == "ready" for j in do("query-jobs"))
                if mirror and ready and not completed:
                    last = self.world.engine.guests.get("private-g")
                    if last is not None:
                        do("x-blockmon-guest-del", {"id": "private-g"})
                        # Its last request may be in flight, or wait for the guests to go on.
                        self._join(last)
                    self.world.attempt("block-job-set-speed", {"device": "private-j", "speed": 0})
                    self.world.attempt("job-resume", {"id": "private-j"})
                    do("block-job-cancel", {"device": "private-j"})
                    completed = True
                time.sleep(0.02)
            if not ends:
                self.world.problem(f"a copy makes no progress: {do('query-block-jobs')}")
            elif ends[0]["event"] == "BLOCK_JOB_COMPLETED" and "error" not in ends[0]["data"]:
                one, other = self._content("private-s"), self._content("private-t")
                if one != other:
                    at = next(i for i in range(len(one)) if one[i] != other[i])
                    self.world.problem(
                        f"{'mirror' if mirror else 'backup'} {arguments}: the copy differs at {at}: "
                        f"{one[at : at + 8].hex()} is {other[at : at + 8].hex()}, {ends}"
                    )
                self.done += 1
        except QMPError as exc:
            self.world.problem(f"private copy: {exc.desc}")
        finally:
            quit_watch()
            for command, value in (
                ("x-blockmon-guest-del", {"id": "private-g"}),
                ("device_del", {"id": "private-d"}),
            ):
                self.world.attempt(command, value)
            until = time.monotonic() + 15
            while time.monotonic() < until:
                self.world.attempt("cont")
                self.world.attempt("blockdev-del", {"node-name": "private-s"})
                self.world.attempt("blockdev-del", {"node-name": "private-t"})
                if not any(name.startswith("private") for name in list(self.world.engine.graph.nodes)):
                    break
                time.sleep(0.05)
            else:
                nodes = [node for node in list(self.world.engine.graph.nodes.values()) if "private" in node.name]
                self.world.problem(f"private nodes stay: {[(node, node.pins, node.parents) for node in nodes]}")

    def _join(self, guest: Guest) -> None:
        until = time.monotonic() + 20
        while guest._thread.is_alive():
            self.world.attempt("cont")
            guest._thread.join(0.1)
            if time.monotonic() > until:
                raise Failed("a guest does not end")

    def _content(self, name: str) -> bytes:
        node = self.world.engine.graph.nodes[name]
        data = bytearray(node.length)
        node.read(0, memoryview(data))
        return bytes(data)


def play(world: World, player: Player, over: Callable[[], bool]) -> None:
    while not over():
        command, arguments = player.command()
        if command == "blockdev-create":
            # Whatever was on the node is gone, and an image that was not finished is not one.
            node = world.engine.graph.nodes.get(str(arguments.get("options", {}).get("file", "")))
            if node is not None:
                world.spoilt.add(Path(node.exact_filename or node.filename).name)
        world.attempt(command, arguments)


def prepare(folder: Path) -> None:
    """Some images to begin with: three chains, and raw files."""
    for number in range(6):
        path = folder / f"q{number}.qcow2"
        backing = ["-b", str(folder / f"q{number - 1}.qcow2"), "-F", "qcow2"] if number % 3 else []
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(path), "4M"], check=True, timeout=20)
    for number in range(6):
        (folder / f"r{number}.raw").write_bytes(random.Random(number).randbytes(MIB) * 4)


def furnish(world: World) -> None:
    """Some nodes to begin with."""
    file = {"driver": "file", "filename": str(world.folder / "q2.qcow2"), "node-name": "n0-file"}
    world.do("blockdev-add", {"driver": "qcow2", "node-name": "n0", "file": file})
    file = {"driver": "file", "filename": str(world.folder / "q3.qcow2")}
    world.do("blockdev-add", {"driver": "qcow2", "node-name": "n1", "file": file, "read-only": True})
    for number, name in ((4, "n2"), (5, "n3")):
        file = {"driver": "file", "filename": str(world.folder / f"q{number}.qcow2")}
        below = f"n{number - 3}"
        world.do("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, "backing": below})
    children = [{"driver": "file", "filename": str(world.folder / f"r{number}.raw")} for number in range(3)]
    world.do("blockdev-add", {"driver": "quorum", "node-name": "n4", "vote-threshold": 2, "children": children})
    file = {"driver": "file", "filename": str(world.folder / "r4.raw")}
    world.do("blockdev-add", {"driver": "raw", "node-name": "n5", "file": file})
    world.do("object-add", {"qom-type": "throttle-group", "id": "g0"})
    world.do("blockdev-add", {"driver": "throttle", "node-name": "n6", "throttle-group": "g0", "file": "n5"})
    for number, node in enumerate(("n0", "n3", "n6")):
        world.do("device_add", {"driver": "virtio-blk-pci", "id": f"d{number}", "drive": node})
        world.do("x-blockmon-guest-add", {"id": f"guest{number}", "device": f"d{number}", "iops": 100})
    world.do("device_add", {"driver": "virtio-scsi-pci", "id": "d3"})
    world.do("device_add", {"driver": "scsi-cd", "id": "d4", "bus": "d3.0"})


def supervise(world: World, over: Callable[[], bool]) -> None:
    """Look after the engine until it is time, or until something is wrong."""
    looked = time.monotonic()
    drained: dict[str, int] = {}
    while not over() and not world.watch.problems:
        time.sleep(0.1)
        late = world.overdue()
        if late is not None:
            world.problem(late)
            faulthandler.dump_traceback(all_threads=True)
            return
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            asked: Future[None] = Future()

            def check(asked: Future[None] = asked) -> None:
                try:
                    world.check_graph()
                finally:
                    asked.set_result(None)

            world.engine.control.post(check)
            try:
                asked.result(ANSWER_WITHIN)
            except TimeoutError:
                world.problem("the control plane is stuck")
                faulthandler.dump_traceback(all_threads=True)
                return
            for name, node in list(world.engine.graph.nodes.items()):
                drained[name] = drained.get(name, 0) + 1 if node.quiesce_count else 0
                if drained[name] > 10:
                    world.problem(f"{node} stays drained")
            world.attempt("cont")


def run(arguments: argparse.Namespace, folder: Path, log: Path, watch: Watch) -> None:
    prepare(folder)
    world = World(folder, log, watch)
    end = time.monotonic() + arguments.seconds

    def over() -> bool:
        return time.monotonic() > end or bool(watch.problems)

    threads = []
    if not arguments.replay:
        furnish(world)
    if arguments.replay:
        text = Path(arguments.replay).read_text(encoding="utf-8").replace("%DIR%", str(folder))
        lines = [json.loads(line) for line in text.splitlines()]
        end += 3600

        def replay() -> None:
            nonlocal end
            for line in lines:
                if over():
                    break
                world.attempt(line["execute"], line["arguments"])
            end = 0

        threads.append(threading.Thread(target=replay, daemon=True))
    else:
        for number in range(arguments.threads):
            player = Player(world, f"{arguments.seed}/{number}", arguments.nonsense)
            threads.append(threading.Thread(target=play, args=(world, player, over), daemon=True))
        copies = Copies(world, f"{arguments.seed}/copies")

        def copy() -> None:
            while not over():
                copies.round()

        if arguments.copies:
            threads.append(threading.Thread(target=copy, daemon=True))
    for thread in threads:
        thread.start()
    supervise(world, over)
    for thread in threads:
        thread.join(ANSWER_WITHIN + 5)
        if thread.is_alive() and not watch.problems:
            world.problem("a player hangs")
            faulthandler.dump_traceback(all_threads=True)
    stuck = any(word in problem for problem in watch.problems for word in ("no answer", "stuck", "hangs"))
    if not stuck:
        world.settle()
        checked: Future[None] = Future()

        def check() -> None:
            try:
                world.check_idle()
            finally:
                checked.set_result(None)

        world.engine.control.post(check)
        checked.result(ANSWER_WITHIN)
        world.close()
        world.check_images()
    good = sum(count[0] for count in world.counts.values())
    bad = sum(count[1] for count in world.counts.values())
    print(f"seed {arguments.seed}: {good} commands went well, {bad} were refused", flush=True)
    if not arguments.replay and arguments.copies:
        print(f"{copies.done} copies compared")
    if arguments.verbose:
        for name, (well, refused) in sorted(world.counts.items()):
            print(f"  {name:40} {well:6} {refused:6}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Random QMP commands on an engine under load.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--nonsense", type=float, default=0.2, help="share of commands made up from the schema alone")
    parser.add_argument("--no-copies", dest="copies", action="store_false", help="without the copies that are compared")
    parser.add_argument("--log", type=Path, default=None, help="where the commands go (default: stress-SEED.log)")
    parser.add_argument("--replay", help="play the commands of such a file")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    log = arguments.log or Path(tempfile.gettempdir()) / f"stress-{arguments.seed}.log"
    faulthandler.enable()
    watch = Watch()
    logging.getLogger().addHandler(watch)
    threading.excepthook = lambda args: watch.problems.append(
        "thread: " + "".join(__import__("traceback").format_exception(args.exc_value))
    )
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    try:
        run(arguments, folder, log, watch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    if watch.problems:
        for problem in dict.fromkeys(watch.problems):
            print("PROBLEM", problem)
        print(f"commands: {log}; seed {arguments.seed}", flush=True)
        os._exit(1)  # threads that hang must not keep the process
    log.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
