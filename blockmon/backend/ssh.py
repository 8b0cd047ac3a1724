"""The way to a socket on another machine: the system's ssh, with its own configuration, keys and agent."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import subprocess
import tempfile
import threading

from blockmon.backend.address import SshAddress

_OPTIONS = (
    # Nobody can be asked: the terminal is the screen's. The agent and keys without a passphrase do.
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ExitOnForwardFailure=yes",
    "StreamLocalBindMask=0177",
    # A connection that died without a word is found out within a minute.
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
)
_REAP = 2.0
"""Seconds that ssh gets to end by itself."""
_WORDS = 0.5
"""Seconds that it gets to say why it could not."""
_LOOK = 0.02
"""Seconds between two looks for the socket."""
_LONGEST = 4096
"""Bytes of a line of what it says."""


def ssh_command(address: SshAddress, here: str) -> list[str]:
    """The command that makes a socket at *here* lead to the one over there, until it is ended."""
    command = ["ssh", "-n", "-N", "-T", "-a", "-x"]
    for option in _OPTIONS:
        command += ["-o", option]
    if address.user is not None:
        command += ["-l", address.user]
    if address.port is not None:
        command += ["-p", str(address.port)]
    near, far = (path.replace("\\", "\\\\").replace(":", "\\:") for path in (here, address.path))
    return [*command, "-L", f"{near}:{far}", "--", address.host]


class SshTunnel:
    """A running ssh, and a socket in a folder of its own, which nobody else can get at."""

    def __init__(self, address: SshAddress) -> None:
        """Start ssh. Errors: OSError, when there is none."""
        self._far = address.path
        self._folder = tempfile.TemporaryDirectory(prefix="blockmon-ssh-", ignore_cleanup_errors=True)
        self.path = os.path.join(self._folder.name, "q")
        """Where the socket will be."""
        try:
            # Not asyncio's: its watcher and its terminate() take the child from each other, and say so on stderr.
            self._process = subprocess.Popen(
                ssh_command(address, self.path),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Away from the terminal: ssh reads no password from it, and Ctrl+C is not for ssh.
                start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except BaseException:
            self._folder.cleanup()
            raise
        self._said: collections.deque[str] = collections.deque(maxlen=8)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._listen, name="ssh", daemon=True).start()

    async def ready(self) -> bool:
        """Wait until the socket is there; False when ssh has ended instead."""
        while not _exists(self.path):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._ended.wait()
                    return False
        return True

    def _listen(self) -> None:
        """In a thread: keep what ssh says, and wait for its end."""
        assert self._process.stderr is not None
        with self._process.stderr as said:
            for line in iter(lambda: said.readline(_LONGEST), b""):
                text = line.decode(errors="replace").strip()
                if text:
                    self._said.append(text)
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._ended.set)

    async def _end(self) -> bool:
        """Whether ssh ended in time."""
        try:
            async with asyncio.timeout(_REAP):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def complaint(self) -> str:
        """What ssh said last, in one line; "" when it said nothing and still runs."""
        # What it says of a connection that it could not make may come a little after that has ended.
        if not self._said:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WORDS):
                    await self._ended.wait()
        said = list(self._said)
        if not said:
            return "ssh ended without a word" if self._ended.is_set() else ""
        refused = re.fullmatch(r"channel \d+: open failed: (.*)", said[-1])
        if refused is not None:
            return f"ssh: {refused[1]}; does a server listen at {self._far} there?"
        return said[-1] if said[-1].startswith("ssh:") else f"ssh: {said[-1]}"

    async def close(self) -> None:
        """End ssh and wait for it."""
        self._process.terminate()
        if not await self._end():
            self._process.kill()
            await self._end()
        self._folder.cleanup()


def _exists(path: str) -> bool:
    return os.path.exists(path)
