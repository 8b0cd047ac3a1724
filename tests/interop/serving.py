"""`blockmon serve` in a process of its own, and the real monitors beside it."""

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCKMON = [sys.executable, "-m", "blockmon", "serve"]
TIMEOUT = 60
_GENERATED = re.compile(r"#block\d+")
_RATES = re.compile(r"\([\d.]+ \w+/sec and [\d.]+ ops/sec\)")
_MACHINE_RATES = re.compile(r"^(\d+,1,)[\d:.]+,[\d.]+,[\d.]+$", re.MULTILINE)
_TIME = re.compile(r"; \d\d\.\d\d sec ")


@contextlib.contextmanager
def talking(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A program with pipes for input and output; it is killed at the end, and when that takes too long."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        end_of(process)


def end_of(process: "subprocess.Popen[Any]") -> int:
    """Wait for the end of a program whose input may be closed already; return its exit status."""
    if process.stdin is not None and process.stdin.closed:
        process.stdin = None
    process.communicate(timeout=TIMEOUT)
    return process.returncode


class Serve:
    """A running `blockmon serve` with QMP on its standard streams, past the negotiation.

    Options are carried out in their order and the QMP server comes last, so all of them stand when the greeting is
    there.
    """

    def __init__(self, *args: str | Path, cwd: Path | None = None) -> None:
        self._ending = contextlib.ExitStack()
        command = [*BLOCKMON, *map(str, args), "--qmp", "stdio"]
        self.process = self._ending.enter_context(talking(command, stderr=subprocess.PIPE, text=True, cwd=cwd))
        self.greeting = self.read()
        assert self.ask("qmp_capabilities") == {"return": {}}

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.process.stdin.write(json.dumps({"execute": command, "arguments": given}) + "\n")
        self.process.stdin.flush()
        while "event" in (message := self.read()):
            pass
        return message

    def wait_event(self, name: str) -> dict[str, Any]:
        while (message := self.read()).get("event") != name:
            pass
        return message

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return end_of(self.process)

    def close(self) -> None:
        self._ending.close()


def plain(text: str) -> str:
    """*text* without what differs from run to run: generated names, times, rates, carriage returns."""
    text = _GENERATED.sub("#blockN", text.replace("\r\n", "\n"))
    return _TIME.sub("; T ", _MACHINE_RATES.sub(r"\1T", _RATES.sub("(R)", text)))


def human_monitor(command: Sequence[str], lines: Sequence[str], cwd: Path) -> list[str]:
    """What human-monitor-command of a program with QMP on its standard streams returns for each line.

    What it prints to its standard output instead (qemu-io in QEMU 7.2) is appended to the answer that follows.
    """
    messages = [{"execute": "qmp_capabilities"}]
    messages += [
        {"execute": "human-monitor-command", "arguments": {"command-line": line}}  # type: ignore[dict-item]
        for line in lines
    ]
    done = subprocess.run(
        ["timeout", str(TIMEOUT), *command],
        input="".join(json.dumps(message) + "\n" for message in [*messages, {"execute": "quit"}]),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    answers = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            message = json.loads(line)
            if isinstance(message.get("return"), str):
                answers.append(plain(message["return"]))
            assert "error" not in message, message
    assert len(answers) == len(lines), done.stdout
    return answers
