"""A program in a real terminal, by tmux: what is on the screen, and keys for it."""

import contextlib
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL = 0.02  # seconds between two looks at the screen


class Tmux:
    """One program in a terminal of a given size, on a tmux server of its own.

    It begins with a clean set of terminal variables; *env* is added to the environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        term: str = "tmux-256color",
    ) -> None:
        self._socket = f"blockmon-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "TMUX_PANE", "NO_COLOR", "COLORTERM")}
        environment |= {"LC_ALL": "C.UTF-8", **(env or {})}
        # remain-on-exit keeps the last screen and the exit status. The shell only waits until it is set.
        script = f"tmux -L {self._socket} wait-for go; exec {shlex.join(command)}"
        self._tmux(
            *("-f", "/dev/null", "new-session", "-d", "-s", "t", "-x", str(columns), "-y", str(rows)),
            *(("-c", str(cwd)) if cwd is not None else ()),
            *("-e", "TERM=" + term) if term != "tmux-256color" else (),
            script,
            env=environment,
        )
        self._tmux("set-option", "-g", "default-terminal", term)
        self._tmux("set-option", "-g", "remain-on-exit", "on")
        self._tmux("set-option", "-g", "status", "off")
        self._tmux("set-option", "-g", "escape-time", "0")
        self._tmux("resize-window", "-t", "t", "-x", str(columns), "-y", str(rows))
        self._tmux("wait-for", "-S", "go")

    def _tmux(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *args],
            env=env,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"tmux {shlex.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def send(self, *keys: str) -> None:
        """Press keys by tmux's names: "Enter", "C-q", "F5", "Up", "M-Enter"."""
        self._tmux("send-keys", "-t", "t", *keys)

    def type(self, text: str) -> None:
        """Type *text* as it is."""
        self._tmux("send-keys", "-t", "t", "-l", "--", text)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-t", "t", "-x", str(columns), "-y", str(rows))

    def capture(self, *, styles: bool = False) -> str:
        """What is on the screen, a line a row, without blanks at the ends; with *styles* its escape sequences too."""
        return self._tmux("capture-pane", "-t", "t", "-p", *(["-e"] if styles else []))

    def wait_for(self, text: str | re.Pattern[str], timeout: float = 10) -> str:
        """Wait until the screen shows *text*, and return the screen. Fails with the screen as it is."""
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text
        return self._wait(lambda screen: pattern.search(screen) is not None, f"{pattern.pattern!r}", timeout)

    def wait_gone(self, text: str, timeout: float = 10) -> str:
        """Wait until the screen no longer shows *text*, and return the screen."""
        return self._wait(lambda screen: text not in screen, f"{text!r} to go", timeout)

    def press_until(self, key: str, text: str, timeout: float = 10) -> str:
        """Press *key* until *text* shows; a press that comes faster than a person's may count as typed ahead."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.send(key)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, 0.5)
        return self.wait_for(text, 0.5)

    def _wait(self, holds: Callable[[str], bool], what: str, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            screen = self.capture()
            if holds(screen):
                return screen
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s for {what}; the screen is:\n{screen}")
            time.sleep(POLL)

    def exit_status(self, timeout: float = 10) -> int:
        """Wait for the program to end and return its exit status (128 + the signal's number when a signal ended it)."""
        deadline = time.monotonic() + timeout
        while True:
            dead, status, signal = (
                self._tmux("display-message", "-t", "t", "-p", "#{pane_dead},#{pane_dead_status},#{pane_dead_signal}")
                .strip()
                .split(",")
            )
            if dead == "1" and (status or signal):
                return int(status) if status else 128 + int(signal or 0)
            if dead == "1":
                # tmux (3.3a) sometimes misses that a child is gone; the end of another child makes it look again.
                self._tmux("run-shell", "true")
            if time.monotonic() > deadline:
                raise AssertionError(f"still running after {timeout} s; the screen is:\n{self.capture()}")
            time.sleep(POLL)

    def close(self) -> None:
        """End the terminal and what runs in it."""
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False, timeout=20)
