"""Images that lie in images: an inner one grows past the end of the outer one, which grows with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from tests.engine.drivers.qcow2.support import make, qemu_check
from tests.engine.jobs.session import Session, content, noise

MIB = 1 << 20


def test_an_inner_image_grows_the_outer_one(session: Session) -> None:
    session.create_qcow2("outer", 0)
    session.add_qcow2("outer")
    session.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "outer", "size": 4 * MIB})
    session.wait_status("c", "concluded")
    assert "error" not in (session.job("c") or {})
    session.do("job-dismiss", id="c")
    session.do("blockdev-add", driver="qcow2", node_name="inner", file="outer")
    with session.writer("inner") as user:
        user.write(MIB, memoryview(noise("inner", 2 * MIB)))
        user.write_zeroes(0, 512 << 10)
    session.do("blockdev-del", node_name="inner")
    session.do("blockdev-del", node_name="outer")
    qemu_check(session.folder / "outer.qcow2")
    session.add_qcow2("outer")
    session.do("blockdev-add", driver="qcow2", node_name="inner", file="outer")
    inner = session.node("inner")
    assert content(inner) == bytes(MIB) + noise("inner", 2 * MIB) + bytes(MIB)


@pytest.fixture
def looping(tmp_path: Path) -> Path:
    """An image whose backing file is itself, beneath so many filters that its name does not show it."""
    path = tmp_path / "loop.qcow2"
    make(path, MIB)
    image = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
    child = {"driver": "raw", "file": image}
    voting = {"driver": "quorum", "vote-threshold": 1, "children": [child, child]}
    name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "blkdebug", "image": voting}})
    command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", name, "-F", "raw", path]
    subprocess.run(command, check=True, timeout=30)
    return path


@pytest.mark.interop
def test_a_hidden_loop_ends_in_one_error(looping: Path) -> None:
    engine = Engine()
    try:
        with pytest.raises(GenericError, match=r"Backing chain is longer than 200 images$"):
            engine.execute(
                "blockdev-add",
                {
                    "driver": "qcow2",
                    "node-name": "n",
                    "read-only": True,
                    "file": {"driver": "file", "filename": str(looping)},
                },
            )
        assert engine.execute("query-named-block-nodes") == []
    finally:
        engine.close()
