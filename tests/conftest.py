"""What every test can use: the paths of the real QEMU tools, and a terminal."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tmux import Tmux

if TYPE_CHECKING:
    from tests.graphs import Bench

REQUIRE_INTEROP = os.environ.get("BLOCKMON_REQUIRE_INTEROP", "") not in ("", "0")

PACKAGE_OF = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "fio": "fio",
    "tmux": "tmux",
    "screen": "screen",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in tests/interop talks to other programs."""
    interop = Path(__file__).parent / "interop"
    for item in items:
        if item.path.is_relative_to(interop):
            item.add_marker(pytest.mark.interop)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where interop is required (CI), a skipped interop test is a failed one, whatever skipped it."""
    report = yield
    if REQUIRE_INTEROP and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("interop"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but BLOCKMON_REQUIRE_INTEROP is set: {reason}"
    return report


def find_tool(name: str) -> str:
    """Return the path of a program that Debian has; skips the test, or fails it where interop is required."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed (Debian's {PACKAGE_OF.get(name, name)})"
        if REQUIRE_INTEROP:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def qemu_img() -> str:
    return find_tool("qemu-img")


@pytest.fixture(scope="session")
def qemu_io() -> str:
    return find_tool("qemu-io")


@pytest.fixture(scope="session")
def qemu_nbd() -> str:
    return find_tool("qemu-nbd")


@pytest.fixture(scope="session")
def qsd() -> str:
    """qemu-storage-daemon."""
    return find_tool("qemu-storage-daemon")


@pytest.fixture(scope="session")
def qemu_system() -> str:
    return find_tool("qemu-system-x86_64")


@pytest.fixture(scope="session")
def nbdinfo() -> str:
    return find_tool("nbdinfo")


@pytest.fixture(scope="session")
def fio() -> str:
    return find_tool("fio")


@pytest.fixture
def tmux() -> Iterator[Callable[..., Tmux]]:
    """Start programs in real terminals: `tmux(["blockmon", "x.qcow2"], columns=80, rows=24)`. They end with it."""
    find_tool("tmux")
    terminals: list[Tmux] = []

    def start(command: list[str], **options: object) -> Tmux:
        terminal = Tmux(command, **options)  # type: ignore[arg-type]
        terminals.append(terminal)
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator["Bench"]:
    """An empty graph, and a folder for its files."""
    from tests.graphs import Bench

    bench = Bench(tmp_path)
    yield bench
    bench.graph.close()
