"""qemu-io on nodes and devices. The texts are those of qemu-io 7.2 (tests/interop/test_qemu_io.py asks it)."""

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.drivers.protocol.null import NullDriver
from engine.engine import Engine
from engine.graph.permissions import Perm
from engine.monitor.hmp import Monitor, execute, run_line
from engine.monitor.qemu_io.options import read_options
from engine.monitor.qemu_io.text import UsageError, amount, dump, duration, read_number, report

Io = Callable[[str], str]
NUMBERS = re.compile(r"; .* sec \(.*/sec and .* ops/sec\)")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def io(engine: Engine, image: Path) -> Io:
    """Run a command of qemu-io on a raw image; times and rates are left out of what it prints."""
    file = {"driver": "file", "filename": str(image)}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "r", "file": file, "discard": "unmap"})

    def run(command: str) -> str:
        return NUMBERS.sub("; T", run_hmp(engine, f'qemu-io r "{command}"'))

    return run


def run_hmp(engine: Engine, line: str) -> str:
    text = asyncio.run_coroutine_threadsafe(run_line(engine, line), engine.control.loop).result(30)
    return text.replace("\r\n", "\n")


# -- data ---------------------------------------------------------------------------------------------------------


def test_write_and_verify(io: Io, image: Path) -> None:
    assert io("write -P 0xaa 512 1k") == "wrote 1024/1024 bytes at offset 512\n1 KiB, 1 ops; T\n"
    assert image.read_bytes()[512:1536] == b"\xaa" * 1024
    assert io("read -P 0xaa 512 1k") == "read 1024/1024 bytes at offset 512\n1 KiB, 1 ops; T\n"
    assert io("read -P 0xaa 512 1025").startswith("Pattern verification failed at offset 512, 1025 bytes\nread ")
    assert io("read -P 0xaa -s 512 -l 1k 0 4k").startswith("read 4096/4096")
    assert io("read -P 0xaa -s 511 -l 1k 0 4k").startswith("Pattern verification failed at offset 511, 1024 bytes\n")
    assert io("read -q 0 1k") == ""


def test_the_pattern_is_checked_across_pieces(io: Io, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("buffers", "reading"):
        monkeypatch.setattr(f"engine.monitor.qemu_io.{module}.CHUNK", 4096)
    io("write -q -P 7 0 20k")
    io("write -q -P 8 12345 1")
    assert io("read -q -P 7 0 12345") == ""
    assert io("read -q -P 7 12346 5000") == ""
    assert io("read -q -P 7 0 20k") == "Pattern verification failed at offset 0, 20480 bytes\n"
    assert io("read -q -P 8 -s 12345 -l 1 0 20k") == ""


def test_write_variants(io: Io, image: Path, tmp_path: Path) -> None:
    (tmp_path / "pattern").write_bytes(b"abc")
    io("write -q -P 1 0 64k")
    io("write -q -z 4k 4k")
    io(f"write -q -s {tmp_path}/pattern 100 7")
    io("writev -q -P 2 0 1 2 3")
    io("aio_write -q -P 3 10 5 5")
    data = image.read_bytes()
    assert data[:6] == b"\2" * 6
    assert data[10:20] == b"\3" * 10
    assert data[100:107] == b"abcabca"
    assert data[4096:8192] == bytes(4096)
    assert data[8192:65536] == b"\1" * (65536 - 8192)
    assert io("write -C 0 1k").startswith("1024,1,0:00:0")
    assert io("discard 0 64k") == "discard 65536/65536 bytes at offset 0\n64 KiB, 1 ops; T\n"
    assert image.read_bytes()[:65536] == bytes(65536)


def test_dump(io: Io) -> None:
    io("write -q -P 0x41 500 30")
    assert io("read -vq 500 18") == ""
    assert io("read -v 500 18").startswith(
        "000001f4:  41 41 41 41 41 41 41 41 41 41 41 41 41 41 41 41  AAAAAAAAAAAAAAAA\n00000204:  41 41  AA\nread 18/18"
    )
    assert "".join(dump(memoryview(b" a~Z9\x80\xff"), 0)) == "00000000:  20 61 7e 5a 39 80 ff  .a.Z9..\n"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("read 1M 1k", "read failed: Input/output error\n"),
        ("readv 1048000 1k", "readv failed: Input/output error\n"),
        ("aio_read 1M 1k", "readv failed: Input/output error\n"),
        ("write 1M 1k", "write failed: Input/output error\n"),
        ("write -z 1M 1k", "write failed: Input/output error\n"),
        ("aio_write 1M 1k", "aio_write failed: Input/output error\n"),
        ("discard 1M 1k", "discard failed: Input/output error\n"),
        ("write -c 0 64k", "write failed: Operation not supported\n"),
        ("read -b 0 1k", "read failed: Operation not supported\n"),
        ("read", "bad argument count 0 to read, expected at least 2 arguments\n"),
        ("r 1", "bad argument count 1 to r, expected at least 2 arguments\n"),
        ("map x", "bad argument count 1 to map, expected 0 arguments\n"),
        ("alloc", "bad argument count 0 to alloc, expected between 1 and 2 arguments\n"),
        ("read x 1k", "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x\n"),
        ("read 0 8E", "Parsing error: argument too large -- 8E\n"),
        ("read 0 2G", "length cannot exceed 2147483136, given 2G\n"),
        ("write 0 2G", "length cannot exceed 2147483136 without -n, given 2G\n"),
        ("readv 0 2G", "Argument '2G' exceeds maximum size 2147483136\n"),
        ("readv 0 1G 1G", "The total number of bytes exceed the maximum size 2147483136\n"),
        ("write -P 256 0 1k", "256 is not a valid pattern byte\n"),
        ("write -u 0 1k", "-u requires -z to be specified\n"),
        ("write -n 0 1k", "-n requires -z to be specified\n"),
        ("write -z -P 1 0 1k", "Only one of -z, -P, and -s can be specified at the same time\n"),
        ("write -z -b 0 1k", "-b and -z cannot be specified at the same time\n"),
        ("write -f -c 0 64k", "-f and -b or -c cannot be specified at the same time\n"),
        ("write -c 1 64k", "1 is not a sector-aligned value for 'offset'\n"),
        ("write -s /nodir/x 0 1k", "/nodir/x: No such file or directory\n"),
        ("write -s /dev/null 0 1k", "/dev/null: file is empty\n"),
        ("read -P 1 -l 2k 0 1k", "pattern verification range exceeds end of read data\n"),
        ("aio_write -z 0 1k 1k", "-z supports only a single length parameter\n"),
        ("aio_read -i 0 1k", "injecting invalid read request\n"),
        ("aio_write -i 0 1k", "injecting invalid write request\n"),
        ("truncate -m foo 1M", "Invalid preallocation mode 'foo'\n"),
        ("sleep x", "x is not a valid number\n"),
        ("nope", 'command "nope" not found\n'),
        ("help nope", "command nope not found\n"),
        ("length", "1 MiB\n"),
        ("flush", ""),
        ("aio_flush", ""),
        ("sleep 1", ""),
        ("alloc 0", "512/512 bytes allocated at offset 0 bytes\n"),
        ("map", "1 MiB (0x100000) bytes     allocated at offset 0 bytes (0x0)\n"),
        ("", ""),
    ],
)
def test_answers(io: Io, command: str, text: str) -> None:
    assert io(command) == text


def test_wrong_options_show_the_usage(io: Io) -> None:
    usage = "discard [-Cq] off len -- discards a number of bytes at a specified offset\n"
    assert io("discard -x 0 1k") == f"discard: invalid option -- 'x'\n{usage}"
    assert io("discard 0 1k 2") == usage
    assert io("truncate -m") == (
        "truncate: option requires an argument -- 'm'\n"
        "truncate [-m prealloc_mode] off -- truncates the current file at the given offset\n"
    )


def test_truncate_and_map_of_an_overlay(engine: Engine, io: Io, image: Path) -> None:
    assert io("truncate 2M") == ""
    assert image.stat().st_size == 2 << 20
    assert io("length") == "2 MiB\n"


def test_help_names_every_command_once(io: Io) -> None:
    names = [line.split()[0] for line in io("help").splitlines() if " -- " in line]
    assert names == sorted(set(names))
    assert {"read", "readv", "write", "writev", "aio_read", "aio_write", "aio_flush", "map", "alloc"} <= set(names)
    for name in names:
        assert io(f"help {name}").splitlines()[0].startswith(f"{name} ")


# -- permissions, back ends ---------------------------------------------------------------------------------------


def test_a_read_only_node_refuses_writes(engine: Engine, image: Path) -> None:
    file = {"driver": "file", "filename": str(image)}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "ro", "file": file, "read-only": True})
    for command in ("write 0 1k", "discard 0 1k", "truncate 2M", "aio_write 0 1k"):
        assert run_hmp(engine, f'qemu-io ro "{command}"') == "Block node is read-only\n"
    assert run_hmp(engine, 'qemu-io ro "read 0 1k"').startswith("read 1024/1024")


def test_nothing_is_left_behind(engine: Engine, io: Io) -> None:
    for command in ("read 0 1k", "write 0 1k", "write x 1k", "nope"):
        io(command)
    assert engine.control.call(lambda: list(engine.graph.backends)) == []
    edges = engine.execute("x-debug-query-block-graph")["edges"]
    assert all("write" not in edge["perm"] for edge in edges)


def test_a_device_keeps_its_own_permissions(engine: Engine, io: Io) -> None:
    node = engine.graph.nodes["r"]
    device = engine.control.call(lambda: engine.graph.add_backend("device", "d", node, Perm.CONSISTENT_READ, Perm.ALL))
    assert run_hmp(engine, 'qemu-io d "write -q 0 1k"') == ""
    assert device.perm == Perm.CONSISTENT_READ
    assert device.root.perm == Perm.CONSISTENT_READ


class Gate:
    """Holds up every read of null-co nodes until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        real = NullDriver.read

        def read(driver: NullDriver, offset: int, buffer: memoryview) -> None:
            self.entered.release()
            assert self.open.wait(20)
            real(driver, offset, buffer)

        monkeypatch.setattr(NullDriver, "read", read)


def test_background_requests_of_a_device(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
    node = engine.graph.nodes["n"]
    engine.control.call(lambda: engine.graph.add_backend("device", "d", node, Perm.NONE, Perm.ALL))
    # Both return at once, and run at the same time.
    assert run_hmp(engine, 'qemu-io d "aio_read 0 1k"') == ""
    assert run_hmp(engine, 'qemu-io d "aio_read 4k 2k"') == ""
    assert gate.entered.acquire(timeout=20)
    assert gate.entered.acquire(timeout=20)
    said: list[str] = []
    flush = threading.Thread(target=lambda: said.append(run_hmp(engine, 'qemu-io d "aio_flush"')))
    flush.start()
    assert run_hmp(engine, 'qemu-io d "length"') == "1 MiB\n"  # meanwhile
    gate.open.set()
    flush.join(20)
    assert sorted(re.findall(r"read (\d+)/\1 bytes at offset (\d+)", said[0])) == [("1024", "0"), ("2048", "4096")]
    assert run_hmp(engine, 'qemu-io d "aio_flush"') == ""


def test_background_requests_tell_a_person_when_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
    node = engine.graph.nodes["n"]
    engine.control.call(lambda: engine.graph.add_backend("device", "d", node, Perm.NONE, Perm.ALL))
    printed: list[str] = []
    told = threading.Event()

    def write(text: str) -> None:
        if text:
            printed.append(text)
            told.set()

    work = execute(Monitor(engine, write, interactive=True), 'qemu-io d "aio_read 0 1k"')
    asyncio.run_coroutine_threadsafe(work, engine.control.loop).result(20)
    assert printed == []
    gate.open.set()
    assert told.wait(20)
    assert printed[0].startswith("read 1024/1024 bytes at offset 0\n")


def test_the_control_plane_goes_on_during_io(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
    thread = threading.Thread(target=lambda: run_hmp(engine, 'qemu-io n "read 0 1k"'))
    thread.start()
    assert gate.entered.acquire(timeout=20)
    assert engine.execute("query-version")["package"] == "blockmon"
    gate.open.set()
    thread.join(20)
    assert not thread.is_alive()


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (18.636088, "18.636088 bytes"),
        (5.0001, "5 bytes"),
        (1536, "1.500 KiB"),
        (65536, "64 KiB"),
        (3014656, "2.875 MiB"),
        (1 << 61, "2 EiB"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


def test_durations() -> None:
    assert duration(0.029, fixed=False) == "00.02 sec"
    assert duration(59.999, fixed=False) == "59.99 sec"
    assert duration(61.5, fixed=False) == "0:01:01.50"
    assert duration(3600, fixed=False) == "1:00:00.00"
    assert duration(1, fixed=True) == "0:00:01.00"


def test_reports() -> None:
    assert report("read", 0.5, 512, 1536, machine=False) == (
        "read 1536/1536 bytes at offset 512\n1.500 KiB, 1 ops; 00.50 sec (3 KiB/sec and 2.0000 ops/sec)\n"
    )
    assert report("read", 0.5, 512, 1536, machine=True) == "1536,1,0:00:00.50,3072.000,2.000\n"


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("0x10", 16), ("1.5k", 1536), ("1b", 1), ("1M", 1 << 20)])
def test_numbers(text: str, value: int) -> None:
    assert read_number(text) == value


def test_options() -> None:
    options = read_options("cmd", "ab:c", ["x", "-ab1", "y", "-b", "2", "--", "-c"], "usage")
    assert options.operands == ["x", "y", "-c"]
    assert "a" in options
    assert options.argument("b") == "2"
    assert "c" not in options
    for words in (["-x"], ["-:"], ["-ab"]):
        with pytest.raises(UsageError):
            read_options("cmd", "ab:c", words, "usage")
