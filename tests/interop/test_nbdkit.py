"""The nbd driver on nbdkit with its filters: servers that are slow, fail, or can do less."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import QMPError
from tests.interop.nbd_servers import MIB, SIZE, Disk, Server, churn, nbdkit


@pytest.fixture
def running() -> Iterator[list[Server]]:
    """Servers to be ended with the test."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.end()


KITS: dict[str, list[str]] = {
    "memory": ["memory", "4M"],
    "one thread": ["--filter=noparallel", "memory", "4M"],
    "no structured replies": ["--no-sr", "memory", "4M"],
    "newstyle that is not fixed": ["--mask-handshake=0", "memory", "4M"],
    "zeroes behind the name": ["--mask-handshake=1", "memory", "4M"],
    "no extents": ["--filter=noextents", "memory", "4M"],
    "no zeroing": ["--filter=nozero", "memory", "4M"],
    "zeroing not told": ["--filter=nozero", "memory", "4M", "zeromode=none"],
    "FUA by flush": ["--filter=fua", "memory", "4M", "fuamode=emulate"],
    "FUA always": ["--filter=fua", "memory", "4M", "fuamode=force"],
    "FUA left out": ["--filter=fua", "memory", "4M", "fuamode=discard"],
    "blocks of 512": [
        "--filter=blocksize-policy",
        "memory",
        "4M",
        "blocksize-minimum=512",
        "blocksize-error-policy=error",
    ],
    "blocks of 4096": [
        *("--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=4096", "blocksize-preferred=65536"),
        *("blocksize-maximum=65536", "blocksize-error-policy=error"),
    ],
    # The plugin's extents are of half the size: a status that is against the protocol.
    "blocks of 64K": [
        *("--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=64K", "blocksize-preferred=1M"),
        *("blocksize-maximum=1M", "blocksize-error-policy=error"),
    ],
    "slow": ["--filter=delay", "memory", "4M", "rdelay=1ms", "wdelay=2ms"],
    "safe for many connections": ["--filter=multi-conn", "memory", "4M", "multi-conn-mode=emulate"],
    "one connection": ["--filter=multi-conn", "memory", "4M", "multi-conn-mode=disable"],
    "by name": ["--filter=exportname", "memory", "4M", "exportname=x", "exportname-strict=true"],
    "sparse": ["--filter=cow", "data", "0x11*8192 @1048576 0x22*8192", "size=4M"],
}


@pytest.mark.parametrize("case", KITS)
def test_nbdkit(case: str, tmp_path: Path, running: list[Server]) -> None:
    running.append(nbdkit(tmp_path, *KITS[case]))
    options = {"export": "x"} if case == "by name" else {}
    with Disk(tmp_path, **options) as disk:
        model = bytearray(SIZE)
        if case == "sparse":
            model[:8192], model[MIB : MIB + 8192] = b"\x11" * 8192, b"\x22" * 8192
        churn(disk, model)


def test_the_old_style_of_nbdkit(tmp_path: Path, running: list[Server]) -> None:
    """Only for reading: nbdkit 1.32 offers a client of the old style what it then refuses."""
    running.append(nbdkit(tmp_path, "-o", "pattern", "4M"))
    with Disk(tmp_path, read_only=True) as disk:
        assert disk.read(80, 16) == (80).to_bytes(8) + (88).to_bytes(8)
        assert disk.extents(SIZE) == [(SIZE, True, False)]
    with pytest.raises(QMPError, match="Server does not support non-empty export names"):
        Disk(tmp_path, read_only=True, export="x")


def test_an_export_that_nbdkit_does_not_have(tmp_path: Path, running: list[Server]) -> None:
    running.append(nbdkit(tmp_path, *KITS["by name"]))
    for name in ("", "y"):
        with pytest.raises(QMPError, match="Requested export not available"):
            Disk(tmp_path, export=name)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        *(("EPERM", errno.EPERM), ("EIO", errno.EIO), ("ENOMEM", errno.ENOMEM), ("EINVAL", errno.EINVAL)),
        *(("ENOSPC", errno.ENOSPC), ("ESHUTDOWN", errno.ESHUTDOWN)),
    ],
)
def test_errors_of_the_server_are_errors_here(code: str, number: int, tmp_path: Path, running: list[Server]) -> None:
    trigger = tmp_path / "trigger"
    faulty = (f"error={code}", "error-rate=100%", f"error-file={trigger}")
    running.append(nbdkit(tmp_path, "--filter=error", "memory", "4M", *faulty))
    with Disk(tmp_path, discard="unmap") as disk:
        disk.node.write(0, memoryview(b"abc"))
        trigger.touch()
        for request in (
            lambda: disk.read(0, 3),
            lambda: disk.node.write(0, memoryview(b"xyz")),
            lambda: disk.node.driver.write_zeroes(0, 4096),
            lambda: disk.node.driver.discard(0, 4096),
            lambda: disk.node.driver.block_status(0, 4096),
        ):
            with pytest.raises(OSError) as error:
                request()
            assert error.value.errno == number
        trigger.unlink()
        assert disk.read(0, 4) == b"abc\0"


def test_a_job_pauses_at_an_error_of_the_server(tmp_path: Path, running: list[Server]) -> None:
    """Where the disk is full the job waits for somebody to make room."""
    trigger = tmp_path / "trigger"
    faulty = ("error-pwrite=ENOSPC", "error-pwrite-rate=100%", f"error-pwrite-file={trigger}")
    running.append(nbdkit(tmp_path, "--filter=error", "memory", "4M", *faulty))
    content = random.Random(5).randbytes(SIZE)
    (tmp_path / "a.raw").write_bytes(content)
    trigger.touch()
    with Disk(tmp_path) as disk:
        disk.do("blockdev-add", driver="file", node_name="source", filename=str(tmp_path / "a.raw"))
        disk.do("blockdev-backup", job_id="j", device="source", target="n", sync="full", on_target_error="enospc")
        told = disk.event("BLOCK_JOB_ERROR")
        assert (told["operation"], told["action"]) == ("write", "stop")
        trigger.unlink()
        disk.do("block-job-resume", device="j")
        assert "error" not in disk.event("BLOCK_JOB_COMPLETED")
        assert disk.read(0, SIZE) == content


def test_a_server_that_answers_in_any_order(tmp_path: Path, running: list[Server]) -> None:
    """Requests of many threads, each delayed by another time."""
    running.append(nbdkit(tmp_path, "--filter=delay", "--threads=16", "pattern", "4M", "rdelay=3ms"))
    with Disk(tmp_path, read_only=True) as disk:

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(30):
                at, length = chance.randrange(SIZE // 8 - 9000) * 8, chance.choice([8, 4096, 65536])
                expected = b"".join(number.to_bytes(8) for number in range(at, at + length, 8))
                if disk.read(at, length) != expected:
                    wrong.append((at, length))

        wrong: list[tuple[int, int]] = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
