"""Image locks against the real tools: each side must see the other's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.graph.permissions import Perm
from tests.graphs import Bench


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def locked_bytes(path: Path) -> set[int]:
    """Bytes of *path* that are read-locked by open file descriptions, from /proc/locks."""
    inode = path.stat().st_ino
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "OFDLCK" in fields and fields[-3].rsplit(":", 1)[1] == str(inode):
            found.update(range(int(fields[-2]), int(fields[-1]) + 1))
    return found


def test_nobody_locks_nothing(bench: Bench) -> None:
    bench.raw("r")
    assert locked_bytes(bench.folder / "r.raw") == set()


def test_writer_that_shares_no_writing_keeps_qemu_out(bench: Bench, qemu_io: str) -> None:
    node = bench.raw("r", bytes(65536))
    backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ | Perm.WRITE, Perm.CONSISTENT_READ)
    path = bench.folder / "r.raw"
    assert locked_bytes(path) == {100, 101, 201, 202, 203}
    refused = run(qemu_io, "-f", "raw", "-c", "write 0 512", str(path))
    assert refused.returncode == 1
    assert 'Failed to get "write" lock' in refused.stderr
    bench.graph.remove_backend(backend)
    assert locked_bytes(path) == set()
    assert run(qemu_io, "-f", "raw", "-c", "write 0 512", str(path)).returncode == 0


def test_qemu_keeps_us_out(bench: Bench, qemu_io: str) -> None:
    path = bench.file("q.raw", bytes(65536))
    node = bench.add(driver="raw", node_name="q", file={"driver": "file", "filename": path})
    holder = subprocess.Popen(
        [qemu_io, "-f", "raw", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("write 0 512\n")
        holder.stdin.flush()
        while "wrote" not in holder.stdout.readline():
            pass
        with pytest.raises(GenericError, match=r'^Failed to get shared "write" lock$'):
            bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
        assert not bench.graph.backends
        # Sharing everything is no conflict with a writer that shares writing.
        bench.graph.add_backend("device", "vdb", node, Perm.CONSISTENT_READ, Perm.ALL)
    finally:
        holder.communicate("quit\n", timeout=30)


def test_two_nodes_of_one_process_conflict(bench: Bench) -> None:
    first = bench.raw("a", bytes(512))
    second = bench.add(driver="raw", node_name="b", file={"driver": "file", "filename": str(bench.folder / "a.raw")})
    bench.graph.add_backend("device", "vda", first, Perm.WRITE, Perm.CONSISTENT_READ)
    with pytest.raises(GenericError, match='Failed to get "write" lock'):
        bench.graph.add_backend("device", "vdb", second, Perm.WRITE, Perm.ALL)


def test_reopening_keeps_the_locks(bench: Bench) -> None:
    from engine.graph.reopen import set_read_only

    node = bench.raw("r", bytes(512), read_only=True)
    bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
    path = bench.folder / "r.raw"
    before = locked_bytes(path)
    assert before == {100, 201, 202, 203}
    set_read_only(node, False)
    assert locked_bytes(path) == before
