"""The real tools as tests need them: images by qemu-img and qemu-io, a qemu-storage-daemon to compare with."""

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class QemuImages:
    """Makes, fills and judges images by qemu-img and qemu-io. Sizes and offsets in bytes, or with a suffix."""

    def __init__(self, qemu_img: str, qemu_io: str) -> None:
        self._img = qemu_img
        self._io = qemu_io

    def run(self, *args: str | Path) -> str:
        """Run qemu-img and return what it printed. Fails with what it said."""
        return _run([self._img, *map(str, args)])

    def create(
        self,
        path: Path,
        size: int | str | None = None,
        *,
        backing: Path | str | None = None,
        backing_format: str = "qcow2",
        fmt: str = "qcow2",
        **options: object,
    ) -> Path:
        """Create an image; _ stands for - in *options* where the format has it so, as in `cluster_size=65536`."""
        args: list[str | Path] = ["create", "-q", "-f", fmt]
        if options:
            args += ["-o", ",".join(f"{key}={value}" for key, value in options.items())]
        if backing is not None:
            args += ["-b", str(backing), "-F", backing_format]
        self.run(*args, path, *([str(size)] if size is not None else []))
        return path

    def io(self, path: Path, *commands: str, fmt: str = "qcow2") -> str:
        """Run qemu-io commands on an image; all must succeed."""
        args = [self._io, "-f", fmt]
        for command in commands:
            args += ["-c", command]
        return _run([*args, str(path)])

    def check(self, path: Path, fmt: str = "qcow2") -> None:
        """The image has no errors and no leaked clusters."""
        done = subprocess.run(
            [self._img, "check", "-f", fmt, str(path)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def assert_identical(self, a: Path, b: Path, *, a_format: str = "qcow2", b_format: str = "qcow2") -> None:
        """Both have the same size and guest-visible bytes."""
        self.run("compare", "-f", a_format, "-F", b_format, a, b)
        # A longer image whose rest is zeroes counts as identical there.
        assert self.info(a)["virtual-size"] == self.info(b)["virtual-size"]

    def info(self, path: Path) -> dict[str, Any]:
        """`qemu-img info`, of this image only."""
        found: dict[str, Any] = json.loads(self.run("info", "--output=json", path))
        return found

    def map(self, path: Path) -> list[dict[str, Any]]:
        """`qemu-img map`, of the whole chain."""
        found: list[dict[str, Any]] = json.loads(self.run("map", "--output=json", path))
        return found

    def chain(
        self,
        directory: Path,
        layers: int = 4,
        *,
        size: int = 16 << 20,
        writes: int = 12,
        seed: int = 1,
        **options: object,
    ) -> list[Path]:
        """Make a chain of qcow2 images, base first, in every layer of which are data, zeroes, discards and writes that
        are not aligned to clusters; with relative backing names. The same *seed* gives the same chain."""
        rng = random.Random(seed)
        paths: list[Path] = []
        for layer in range(layers):
            path = directory / ("base.qcow2" if layer == 0 else f"overlay{layer}.qcow2")
            if paths:
                self.create(path, backing=paths[-1].name, **options)
            else:
                self.create(path, size, **options)
            paths.append(path)
            commands: list[str] = []
            for number in range(writes):
                length = rng.choice([512, 4096, 65536, 512 * rng.randrange(1, 1500)])
                offset = 512 * rng.randrange((size - length) // 512)
                pattern = (layer * writes + number) % 255 + 1
                commands.append(f"write -P {pattern} {offset} {length}")
            commands.append(f"write -z {512 * rng.randrange(size // 1024)} {300 * 512}")
            commands.append(f"write -z -u {65536 * rng.randrange(size // 131072)} 131072")
            commands.append(f"discard {65536 * rng.randrange(size // 131072)} 65536")
            self.io(path, *commands)
        return paths


class StorageDaemon:
    """A qemu-storage-daemon with a QMP monitor on its stdio, past the capability negotiation."""

    def __init__(self, program: str, *args: str) -> None:
        self._process = subprocess.Popen(
            [program, "--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self.greeting = self._read()
        self.execute("qmp_capabilities")

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "qemu-storage-daemon ended"
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Execute a command and return the whole reply, also an error's."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self._process.stdin.flush()
        while "event" in (message := self._read()):
            self.events.append(message)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command and return its result; _ stands for - in the arguments' names."""
        reply = self.ask(command, {key.replace("_", "-"): value for key, value in arguments.items()})
        assert "return" in reply, reply
        return reply["return"]

    def wait_event(self, name: str, **data: Any) -> dict[str, Any]:
        """Return the first event, new or recorded, with this name and data."""
        position = 0
        while True:
            while position < len(self.events):
                event = self.events[position]
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return event
                position += 1
            message = self._read()
            assert "event" in message
            self.events.append(message)

    def close(self) -> None:
        """End the daemon."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=10)
        self._process.kill()
        self._process.wait()


def _run(args: Sequence[str]) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    # qemu-io tells some failures only in its text.
    assert "failed" not in done.stdout, f"{args}: {done.stdout}"
    return done.stdout


@contextlib.contextmanager
def storage_daemon(program: str, *args: str) -> Iterator[StorageDaemon]:
    """A StorageDaemon that ends with the block."""
    daemon = StorageDaemon(program, *args)
    try:
        yield daemon
    finally:
        daemon.close()
