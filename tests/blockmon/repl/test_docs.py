"""The texts for arguments and values: they are those of the engine, and found for servers of any version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from blockmon.repl.docs import member_doc, value_doc

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_docs.py"


def test_the_table_is_what_the_engine_says() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_values_are_told_by_the_others_beside_them() -> None:
    older = ("top", "full", "none", "incremental")
    assert value_doc(older, "full") == "everything, backing layers included"
    assert value_doc((*older, "bitmap", "from-the-future"), "from-the-future") == ""
    assert value_doc(("a", "b"), "a") == ""
    assert value_doc(("none", "always"), "none") == ""  # no such enumeration is known
    assert value_doc(("off", "on", "unmap"), "on") != value_doc(("auto", "on", "off"), "on")


def test_members_are_told_by_the_others_beside_them_and_the_command() -> None:
    assert member_doc("block-job-cancel", "device", ["device", "force"]) == "the job's id"
    assert (
        member_doc("block-stream", "device", ["device", "base", "speed", "new-in-8.0"])
        == "the device or node to stream into"
    )
    assert member_doc("query-unknown", "device", ["device"]) == ""
    assert member_doc("blockdev-add", "no-such-member", ["no-such-member"]) == ""
