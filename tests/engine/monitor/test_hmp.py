"""HMP: arguments, help, errors. The texts are those of qemu-system-x86_64 7.2 (tests/interop/test_hmp.py asks it)."""

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.monitor.hmp import run_line
from engine.monitor.hmp.arguments import ArgumentError, declare, parse
from engine.monitor.hmp.completion import complete
from engine.monitor.hmp.image_text import image_text, size_text


def run(engine: Engine, line: str) -> str:
    """What *line* prints, with plain line ends."""
    import asyncio

    text = asyncio.run_coroutine_threadsafe(run_line(engine, line), engine.control.loop).result(30)
    return text.replace("\r\n", "\n")


@pytest.fixture
def node(engine: Engine) -> str:
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n0", "size": 1 << 20, "read-zeroes": True})
    return "n0"


# -- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args_type", "text", "values"),
    [
        ("device:B", "d0", {"device": "d0"}),
        ("device:B", '  "a b\\n\\"" ', {"device": 'a b\n"'}),
        ("device:B?", "", {}),
        ("force:-f,device:B", "-f d0", {"force": True, "device": "d0"}),
        ("force:-f,device:B", "d0", {"device": "d0"}),
        ("nodes:-n,verbose:-v,device:B?", "-v", {"verbose": True}),
        ("nodes:-n,verbose:-v,device:B?", "-nv", {"nodes": True, "device": "v"}),
        ("size:o", "5", {"size": 5 << 20}),
        ("size:o", "1.5G", {"size": 3 << 29}),
        ("size:o", "0x10", {"size": 16 << 20}),
        ("size:o", "7b", {"size": 7}),
        ("speed:o?,base:s?", "2k x", {"speed": 2048, "base": "x"}),
        ("name:S?", "a  b ", {"name": "a  b "}),
        ("number:l", "0x1f", {"number": 31}),
    ],
)
def test_arguments(args_type: str, text: str, values: dict[str, object]) -> None:
    assert parse("cmd", declare(args_type), text) == values


@pytest.mark.parametrize(
    ("args_type", "text", "complaint"),
    [
        ("device:B", "", "cmd: block device name expected"),
        ("name:s", "", "cmd: string expected"),
        ("name:F", "", "cmd: filename expected"),
        ("name:S", "", "cmd: string expected"),
        ("device:B", "a b", "cmd: extraneous characters at the end of line"),
        ("force:-f,device:B", "-x d0", "cmd: unsupported option -x"),
        ("size:o", "", "invalid size"),
        ("size:o", "x", "invalid size"),
        ("size:o", "-1", "invalid size"),
        ("size:o", "9999999T", "invalid size"),
        ("size:o", "1x", "cmd: extraneous characters at the end of line"),
        ("device:B", '"a', "unterminated string\ncmd: block device name expected"),
        ("device:B", '"\\q"', "unsupported escape code: '\\q'\ncmd: block device name expected"),
        ("number:l", "", "unexpected end of expression"),
        ("number:l", "zz", "invalid char 'z' in expression"),
    ],
)
def test_bad_arguments(args_type: str, text: str, complaint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse("cmd", declare(args_type), text)
    assert str(caught.value) == complaint


# -- the interpreter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", ""),
        ("   ", ""),
        ("nope", "unknown command: 'nope'\n"),
        ("no/pe", "unknown command: 'no'\n"),
        ("info nope", "unknown command: 'info nope'\n"),
        ("commit", 'commit: block device name expected\nTry "help commit" for more information\n'),
        ("info block -x", 'block: unsupported option -x\nTry "help info block" for more information\n'),
        ("q x", 'quit|q: extraneous characters at the end of line\nTry "help q" for more information\n'),
        ("help quit", "quit|q  -- quit the emulator\n"),
        ("help info block-jobs", "info block-jobs  -- show progress of ongoing block device operations\n"),
        ("help nope", "unknown command: 'nope'\n"),
        ("help info nope", "unknown command: 'info nope'\n"),
        ("info version", "7.2.22blockmon\n"),
        ("info block", ""),
        ("info block-jobs", "No active jobs\n"),
        ("block_stream nope", "Error: Cannot find device='nope' nor node-name='nope'\n"),
        ("block_job_cancel nope", "Error: Block job 'nope' not found\n"),
        ("snapshot_blkdev nope", "Error: Parameter 'snapshot-file' is missing\n"),
        ("commit nope", "Device 'nope' not found\n"),
        ("qemu-io nope length", "Error: Cannot find device='' nor node-name='nope'\n"),
    ],
)
def test_lines(engine: Engine, line: str, text: str) -> None:
    assert run(engine, line) == text


def test_help_lists_every_command_sorted(engine: Engine) -> None:
    # The parameters, and what a command is for, may go over several lines; those begin with a bracket or a tab.
    names = [line.split()[0] for line in run(engine, "help").splitlines() if line[:1].isalpha() or line[:1] == "?"]
    assert names == sorted(names)
    assert {"block_stream", "commit", "help|?", "info", "qemu-io", "quit|q", "snapshot_blkdev"} <= set(names)
    assert run(engine, "info") == run(engine, "help info")


def test_info_block_names_nodes_and_devices(engine: Engine, node: str) -> None:
    assert run(engine, "info block -n").splitlines()[0].startswith("n0: ")
    engine.execute("x-blockmon-guest-add", {"id": "disk", "node-name": node, "iops": 1})
    shown = run(engine, "info block")
    assert shown.startswith("disk (n0): ")
    assert "    Removable device: not locked, tray closed\n" in shown or "Removable" not in shown
    assert run(engine, "info block -n disk") == ""
    assert run(engine, "info block nope") == ""
    assert run(engine, "info blockstats").startswith("disk: rd_bytes=")


def test_nodes_stand_where_qemu_wants_devices(engine: Engine, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    file = {"driver": "file", "filename": str(image)}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "r", "file": file})
    assert run(engine, "block_resize r 3") == ""
    assert image.stat().st_size == 3 << 20
    assert run(engine, "block_resize nope 3") == "Error: Cannot find device='nope' nor node-name=''\n"


def test_an_internal_error_is_told_and_survived(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.monitor.hmp.interpreter.Monitor.qmp", None)
    assert run(engine, "info version").startswith("Error: Internal error in 'version': TypeError")


# -- completion ---------------------------------------------------------------------------------------------------


def test_completion(engine: Engine, node: str, tmp_path: Path) -> None:
    def offers(text: str) -> list[str]:
        return sorted(complete(engine, text)[1])

    assert offers("block_job_c") == ["block_job_cancel", "block_job_complete"]
    assert offers("info block") == ["block", "block-jobs", "blockstats"]
    assert offers("help info block-") == ["block-jobs"]
    assert offers("block_stream n") == ["n0"]
    assert offers("block_job_cancel -") == ["-f"]
    assert offers("block_job_cancel ") == []
    assert offers("nope n") == []
    (tmp_path / "image.raw").touch()
    (tmp_path / "images").mkdir()
    assert offers(f"snapshot_blkdev n0 {tmp_path}/im") == [f"{tmp_path}/image.raw", f"{tmp_path}/images/"]


# -- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (200704, "196 KiB"),
        (1023999, "1e+03 KiB"),
        (1234568192, "1.15 GiB"),
        ((1 << 63) - 1, "8 EiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_image_text() -> None:
    shown = "".join(
        image_text(
            {
                "filename": "top.qcow2",
                "format": "qcow2",
                "virtual-size": 4194304,
                "encrypted": True,
                "dirty-flag": True,
                "cluster-size": 65536,
                "backing-filename": "base.qcow2",
                "full-backing-filename": "/img/base.qcow2",
                "backing-filename-format": "raw",
                "format-specific": {
                    "type": "qcow2",
                    "data": {
                        "compat": "1.1",
                        "corrupt": False,
                        "bitmaps": [{"flags": ["in-use", "auto"], "name": "b0", "granularity": 65536}],
                    },
                },
            }
        )
    )
    assert shown == (
        "image: top.qcow2\n"
        "file format: qcow2\n"
        "virtual size: 4 MiB (4194304 bytes)\n"
        "disk size: unavailable\n"
        "encrypted: yes\n"
        "cluster_size: 65536\n"
        "cleanly shut down: no\n"
        "backing file: base.qcow2 (actual path: /img/base.qcow2)\n"
        "backing file format: raw\n"
        "Format specific information:\n"
        "    compat: 1.1\n"
        "    bitmaps:\n"
        "        [0]:\n"
        "            flags:\n"
        "                [0]: in-use\n"
        "                [1]: auto\n"
        "            name: b0\n"
        "            granularity: 65536\n"
        "    corrupt: false\n"
    )
