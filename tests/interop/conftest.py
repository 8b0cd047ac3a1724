"""Fixtures for tests against the real tools; all tests of this folder get the mark `interop`."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.qemu import QemuImages, StorageDaemon


@pytest.fixture(scope="session")
def images(qemu_img: str, qemu_io: str) -> QemuImages:
    """Images made and judged by qemu-img and qemu-io."""
    return QemuImages(qemu_img, qemu_io)


@pytest.fixture
def start_qsd(qsd: str) -> Iterator[Callable[..., StorageDaemon]]:
    """Start qemu-storage-daemons with further options; they end with the test."""
    running: list[StorageDaemon] = []

    def start(*args: str) -> StorageDaemon:
        running.append(StorageDaemon(qsd, *args))
        return running[-1]

    yield start
    for daemon in running:
        daemon.close()


@pytest.fixture
def run_script() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command file's text by `blockmon run -`, in a process of its own: `run_script(text, *args, cwd=…)`."""

    def run(text: str, *args: str, cwd: object = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "blockmon", "run", *args, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=str(cwd) if cwd is not None else None,
        )

    return run
