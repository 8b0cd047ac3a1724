"""Plays one QMP conversation to our engine and to a real QEMU program, and tells where the two differ.

    talk = [
        Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": "$DIR/a.raw"}),
        Do("query-named-block-nodes"),
    ]
    assert_same(talk, tmp_path, prepare=lambda where: ...)

Each side works in a folder of its own, written ``$DIR`` in arguments and in what comes back. Before the comparison are
evened out: times, generated node names (numbered as they appear), the text of ``json:`` names, the order of members.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.engine import Engine
from engine.errors import QMPError

TIMEOUT = 30.0
"""Longest time, in seconds, that a reply or an event may take."""
STORAGE_DAEMON = ("qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control")
SYSTEM_EMULATOR = ("qemu-system-x86_64", "-M", "none", "-display", "none", "-S", "-qmp", "stdio")

Json = Any
Event = dict[str, Any]

VOLATILE = frozenset(
    {
        "rd_total_time_ns",
        "wr_total_time_ns",
        "flush_total_time_ns",
        "unmap_total_time_ns",
        "idle_time_ns",
        "timestamp",
    }
)
"""Members whose values are times."""


# -- what is said ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Do:
    """Execute a command and compare the replies. ours: the reply, in wire form, expected where we differ on purpose."""

    command: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ours: Json = None


@dataclass(frozen=True)
class WaitEvent:
    """Wait until an event of this name and (at least) these data has been seen that no earlier wait took."""

    event: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Until:
    """Repeat a command until its return value satisfies *condition*; only the last reply is compared."""

    command: str
    condition: Callable[[Json], bool]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """Do something in the side's folder (run a tool, write a file); what it returns is compared."""

    function: Callable[[Path], Json]


Step = Do | WaitEvent | Until | Call


# -- who answers -----------------------------------------------------------------------------------------------------


class Peer(Protocol):
    """One side of a comparison."""

    events: list[Event]

    def ask(self, command: str, arguments: Mapping[str, Any]) -> Json:
        """The whole reply: {"return": ...} or {"error": {"class": ..., "desc": ...}}."""

    def more_events(self, timeout: float) -> None:
        """Wait until ``events`` has grown, at most *timeout* seconds."""

    def close(self) -> None:
        """End it."""


class OurPeer:
    """An engine in this process. where: the folder it works in, if whoever made it told."""

    where: Path

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._engine = self.engine = Engine()
        self._engine.subscribe(self._take)

    def _take(self, event: Event) -> None:
        if event["event"].startswith("X_BLOCKMON_"):
            return
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def ask(self, command: str, arguments: Mapping[str, Any]) -> Json:
        try:
            return {"return": self._engine.submit(command, arguments).result(TIMEOUT)}
        except QMPError as exc:
            return {"error": {"class": exc.error_class, "desc": exc.desc}}

    def submit(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Start a command whose answer nobody waits for."""
        self._engine.submit(command, arguments)

    def more_events(self, timeout: float) -> None:
        seen = len(self.events)
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > seen, timeout)

    def close(self) -> None:
        self._engine.close()


class RealPeer:
    """A QEMU program that talks QMP on its stdio. It is killed when it does not end by itself."""

    def __init__(self, command: Sequence[str] = STORAGE_DAEMON) -> None:
        self.events: list[Event] = []
        self._process = subprocess.Popen(
            # Whatever happens to the tests, the program goes.
            ["timeout", "--kill-after=1", "300", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._messages: queue.SimpleQueue[Json] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.greeting = self._messages.get(timeout=TIMEOUT)
        self.ask("qmp_capabilities", {})

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # making an image prints a line about it
                self._messages.put(json.loads(line))
        self._messages.put(None)

    def ask(self, command: str, arguments: Mapping[str, Any]) -> Json:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        while True:
            try:
                message = self._messages.get(timeout=TIMEOUT)
            except queue.Empty:
                raise AssertionError(f"no answer to {command} {arguments} within {TIMEOUT} s") from None
            if message is None:
                raise AssertionError(f"the program ended at {command} {arguments}")
            if "event" not in message:
                return message
            self.events.append(message)

    def more_events(self, timeout: float) -> None:
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return
        assert message is not None, "the program ended"
        assert "event" in message, message
        self.events.append(message)

    def close(self) -> None:
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(10)
        assert process.stdout is not None
        process.stdout.close()


# -- what came of it -------------------------------------------------------------------------------------------------


@dataclass
class Transcript:
    """What one side said: one reply a step (None for waits), and every event."""

    replies: list[Json]
    events: list[Event]


def play(conversation: Iterable[Step], peer: Peer, where: Path) -> Transcript:
    """Play a conversation to one side working in the folder *where*."""
    replies: list[Json] = []
    waits = _Waits(peer)
    for step in conversation:
        match step:
            case Do():
                replies.append(peer.ask(step.command, _in_folder(step.arguments, where)))
            case Until():
                replies.append(_repeat(step, peer, where))
            case WaitEvent():
                waits.wait(step)
                replies.append(None)
            case Call():
                replies.append(step.function(where))
    # What was caused before this answer has been announced before it.
    peer.ask("query-version", {})
    normal = Normaliser(where)
    return Transcript([normal(reply) for reply in replies], [normal(event) for event in peer.events])


def _repeat(step: Until, peer: Peer, where: Path) -> Json:
    deadline = time.monotonic() + TIMEOUT
    while True:
        reply = peer.ask(step.command, _in_folder(step.arguments, where))
        if "return" in reply and step.condition(reply["return"]):
            return reply
        assert time.monotonic() < deadline, f"{step.command} still says {reply}"
        peer.more_events(0.02)


class _Waits:
    """Finds events for WaitEvent steps; each event satisfies one wait."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._taken: set[int] = set()

    def wait(self, step: WaitEvent) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            for number, event in enumerate(list(self._peer.events)):
                if number in self._taken or event["event"] != step.event:
                    continue
                if step.data.items() <= event.get("data", {}).items():
                    self._taken.add(number)
                    return
            assert time.monotonic() < deadline, f"no {step.event} {dict(step.data)}; seen: {self._peer.events}"
            self._peer.more_events(0.2)


def _in_folder(value: Any, where: Path) -> Any:
    if isinstance(value, str):
        return value.replace("$DIR", str(where))
    if isinstance(value, Mapping):
        return {key: _in_folder(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_folder(item, where) for item in value]
    return value


class Normaliser:
    """Takes out of a side's words what can't be the same on both."""

    _AUTO_NAME = re.compile(r"#block\d+")

    def __init__(self, where: Path) -> None:
        self._where = str(where)
        self._names: dict[str, str] = {}

    def __call__(self, value: Json) -> Json:
        if isinstance(value, dict):
            return {key: 0 if key in VOLATILE else self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, str):
            return self._text(value)
        return value

    def _text(self, text: str) -> str:
        if text.startswith("json:"):
            try:
                text = "json:" + json.dumps(self(json.loads(text[5:])), sort_keys=True)
            except ValueError:
                pass  # cut off for its length
        text = text.replace(self._where, "$DIR")
        return self._AUTO_NAME.sub(lambda found: self._name(found[0]), text)

    def _name(self, name: str) -> str:
        return self._names.setdefault(name, f"#auto{len(self._names)}")


# -- the comparison --------------------------------------------------------------------------------------------------


def differences(ours: Json, real: Json, at: str = "", *, ignore: Collection[str] = ()) -> list[str]:
    """One line for each place where two JSON values differ; members named in *ignore* may."""
    if isinstance(ours, dict) and isinstance(real, dict):
        found = []
        for key in sorted(ours.keys() | real.keys()):
            if key in ignore:
                continue
            place = f"{at}.{key}"
            if key not in real:
                found.append(f"{place}: only ours has it: {_shown(ours[key])}")
            elif key not in ours:
                found.append(f"{place}: only the real one has it: {_shown(real[key])}")
            else:
                found += differences(ours[key], real[key], place, ignore=ignore)
        return found
    if isinstance(ours, list) and isinstance(real, list):
        found = [] if len(ours) == len(real) else [f"{at}: ours has {len(ours)} items, the real one {len(real)}"]
        for number, (a, b) in enumerate(zip(ours, real, strict=False)):
            found += differences(a, b, f"{at}[{number}]", ignore=ignore)
        return found
    if isinstance(ours, float) and isinstance(real, int) and ours == real:
        return []  # on the wire there is no difference
    if type(ours) is type(real) and ours == real:
        return []
    return [f"{at}: ours {_shown(ours)}, the real one {_shown(real)}"]


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}…"


def compare(
    conversation: Sequence[Step],
    ours: Transcript,
    real: Transcript,
    *,
    ignore: Collection[str] = (),
    events: bool = True,
) -> list[str]:
    """Where two transcripts of a conversation differ, a line each. events: whether events and their order count."""
    found = []
    for number, (step, mine, theirs) in enumerate(zip(conversation, ours.replies, real.replies, strict=True)):
        match step:
            case Do(command=name, ours=expected) if expected is not None:
                theirs = expected
            case Do(command=name) | Until(command=name):
                pass
            case _:
                name = type(step).__name__
        found += differences(mine, theirs, f"step {number} {name}", ignore=ignore)
    if events:
        found += differences(ours.events, real.events, "events", ignore=ignore)
    return found


def assert_same(
    conversation: Sequence[Step],
    folder: Path,
    *,
    prepare: Callable[[Path], object] | None = None,
    real: Sequence[str] = STORAGE_DAEMON,
    ignore: Collection[str] = (),
    events: bool = True,
    ours: Callable[[], Peer] | None = None,
) -> Transcript:
    """Play *conversation* to both sides and fail with the list of differences; returns our transcript.

    prepare: makes the images of one side in its folder. ignore: names of members that may differ. ours: makes our side
    ready, an engine without anything when not given.
    """
    transcripts = []
    for name, start in (("ours", ours or OurPeer), ("real", lambda: RealPeer(real))):
        where = folder / name
        where.mkdir(parents=True)
        if prepare is not None:
            prepare(where)
        peer: Peer = start()
        try:
            transcripts.append(play(conversation, peer, where))
        finally:
            peer.close()
    found = compare(conversation, *transcripts, ignore=ignore, events=events)
    assert not found, "\n".join(["ours and the real one differ:", *found])
    return transcripts[0]


def main() -> int:
    """``python -m tests.interop.differential < COMMANDS``: one {"execute": ..., "arguments": ...} a line."""
    talk = [Do(item["execute"], item.get("arguments", {})) for item in map(json.loads, sys.stdin)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            transcript = assert_same(talk, Path(folder))
        except AssertionError as exc:
            print(exc)
            return 1
    for step, reply in zip(talk, transcript.replies, strict=True):
        print(step.command, json.dumps(reply))
    return 0


if __name__ == "__main__":
    sys.exit(main())
