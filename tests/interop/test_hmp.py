"""HMP beside that of the real qemu-system-x86_64, byte by byte."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.serving import BLOCKMON, TIMEOUT, Serve, human_monitor, plain
from tests.qemu import QemuImages

NODES = (
    "qcow2,node-name=top,file.driver=file,file.filename=top.qcow2",
    "raw,node-name=r,file.driver=file,file.filename=a.raw",
    "qcow2,node-name=ro,read-only=on,file.driver=file,file.filename=snap.qcow2",
    "qcow2,node-name=old,cache.direct=on,cache.no-flush=on,detect-zeroes=on,file.driver=file,file.filename=old.qcow2",
    "raw,node-name=part,offset=512,size=1024,file=r-file",
    "null-co,node-name=nul,size=1234567890",
)
LINES = """
info block
info block -n
info block -v
info block -n -v
info block -nv
info block -x
info block --
info block top
info block -v top
info block -v ro
info block -v old
info block -v nul
info block -n r
info block nope
info block a b
info block-jobs
info block-jobs x
info blockstats
info nope
info /x
info history x
info
help nope
help nope nope
help info nope
help info block
help info block-jobs x
help info blockstats
help info version
help info chardev
help info history
help help
help block_resize
help block_stream
help block_job_cancel
help block_job_set_speed
help block_job_complete
help block_job_pause
help block_job_resume
help commit x
help snapshot_blkdev
help qemu-io
help quit
help -f
? q
help "info" block
help block nope
block_stream
block_stream nope
block_stream top 1 2 3
block_stream top 0 nope
block_stream -x
block_stream top -1
block_stream top 99999999T
block_stream ""
block_stream "a
block_stream "a\\q"
block_job_cancel nope
block_job_cancel -f nope
block_job_cancel -x nope
block_job_cancel - f
block_job_cancel -f
block_job_cancel
block_job_cancel ""
block_job_set_speed top
block_job_set_speed top x
block_job_set_speed top 1M
block_job_set_speed top -1
block_job_set_speed top 1x
block_job_set_speed top 1 x
block_job_complete top
block_job_pause top
block_job_resume top
block_resize
block_resize top
block_resize top x
block_resize top 9999999T
block_resize top 2k x
block_resize nope 1
commit
commit nope
commit all
commit a b
snapshot_blkdev
snapshot_blkdev nope
snapshot_blkdev top
snapshot_blkdev nope x
snapshot_blkdev -x nope x
snapshot_blkdev top "a b" x y
qemu-io
qemu-io top
qemu-io nope length
qemu-io -d nope length
qemu-io -x top length
qemu-io top length x
quit x
q x
no/pe
  nope
  commit
\tinfo\tnope
  info   block  -x
"info" version
""".strip("\n").splitlines()
# Only what there is can be listed.
OUR_OWN = {"info"}


@pytest.fixture(scope="module")
def pristine(images: QemuImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images: a chain, one with a snapshot, one of the old version, a raw one."""
    folder = tmp_path_factory.mktemp("images")
    images.create(folder / "base.qcow2", "4M")
    images.io(folder / "base.qcow2", "write -P 3 0 128k", "write -z 1M 256k")
    images.create(folder / "top.qcow2", backing="base.qcow2")
    images.io(folder / "top.qcow2", "write -P 4 64k 32k", "write -c -P 5 3M 64k")
    images.create(folder / "snap.qcow2", "1M")
    images.run("snapshot", "-c", "s1", folder / "snap.qcow2")
    images.create(folder / "old.qcow2", "1M", compat="0.10")
    images.create(folder / "a.raw", "1M", fmt="raw")
    return folder


@pytest.fixture
def folders(pristine: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the images: for QEMU, and for ours."""
    copies = (tmp_path / "theirs", tmp_path / "ours")
    for copy in copies:
        shutil.copytree(pristine, copy)
    return copies


def node_options(option: str) -> list[str]:
    nodes = [node for node in NODES if "r-file" not in node]
    return [word for node in nodes for word in (option, node)]


def test_answers_are_qemu_s(qemu_system: str, folders: tuple[Path, Path]) -> None:
    theirs_in, ours_in = folders
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-qmp", "stdio", *node_options("-blockdev")]
    theirs = human_monitor(machine, LINES, theirs_in)
    ours = human_monitor([*BLOCKMON, *node_options("--blockdev"), "--qmp", "stdio"], LINES, ours_in)
    for line, their, our in zip(LINES, theirs, ours, strict=True):
        if line not in OUR_OWN:
            # The real one prints what is wrong with a string to its standard output.
            our = our.removeprefix("unterminated string\n").removeprefix("unsupported escape code: '\\q'\n")
            assert our == their, line


def on_stdio(command: list[str], keys: str, cwd: Path) -> str:
    done = subprocess.run(
        ["timeout", str(TIMEOUT), *command], input=keys.encode(), capture_output=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize(
    "keys",
    [
        "info block\ninfo block top\nnope\ninfo block-jobs\nquit\n",
        "\n\n  \nhelp quit\r\nq\n",
        "abcdef\x01\x04\x04\x7f\x08\x1b[C\x1b[D\x1b[Dx\nabc defX\x1b[1~Y\x1b[3~\x1b[4~Z\x17\x17help quit\nq\n",
        "help quit\ninfo block-jobs\n\x1b[A\x1b[A\x1b[B\nnope\n\x1b[A\x1b[1~\x1b[C\x1b[Cx\x05y\nhelp quit\n"
        "\x1b[A\n\x1b[A\nq\n",
        "info bl\t\x7f\x7f-j\t\nhelp info blo\t\x17\x17\x17block_job_c\t\nhe\tquit\nq\n",
        # (QEMU loses the end of what would be more than a pipe holds.)
        "help\x00\x03\x07 quit\n" + "x" * 100 + "\nq\n",
    ],
    ids=["commands", "empty lines", "editing", "recall", "completion", "odd bytes"],
)
def test_a_session_on_a_terminal_is_qemu_s(qemu_system: str, folders: tuple[Path, Path], keys: str) -> None:
    """Banner, prompt, echo, editing, recall, completion."""
    theirs_in, ours_in = folders
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-monitor", "stdio", *node_options("-blockdev")]
    theirs = on_stdio(machine, keys, theirs_in)
    ours = on_stdio([*BLOCKMON, *node_options("--blockdev"), "--hmp", "stdio"], keys, ours_in)
    assert plain(ours) == plain(theirs)


def test_running_jobs(qemu_system: str, folders: tuple[Path, Path]) -> None:
    """The line about a job, while one stands still."""
    theirs_in, ours_in = folders
    lines = [
        "block_stream top 1b",
        "block_job_pause top",
        "info block-jobs",
        "block_job_pause top",
        "block_job_cancel top",
    ]
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-qmp", "stdio", *node_options("-blockdev")]
    theirs = human_monitor(machine, lines, theirs_in)
    ours = human_monitor([*BLOCKMON, *node_options("--blockdev"), "--qmp", "stdio"], lines, ours_in)
    # How far the first step got depends on the clock.
    assert [text.partition("Completed")[0] for text in ours] == [text.partition("Completed")[0] for text in theirs]
    assert ours[2].startswith("Streaming device top: Completed ")
    assert ours[2].endswith(" of 4194304 bytes, speed limit 1 bytes/s\n")


def test_commit(images: QemuImages, folders: tuple[Path, Path]) -> None:
    """As qemu-img commit: the base has it all, the overlay is empty, both are clean."""
    theirs_in, ours_in = folders
    images.run("commit", "-q", "-f", "qcow2", theirs_in / "top.qcow2")
    answers = human_monitor(
        [*BLOCKMON, *node_options("--blockdev"), "--qmp", "stdio"],
        [
            "commit top",
            "commit r",
            'qemu-io top "map"',
            'qemu-io top "read -q -P 5 3M 64k"',
            "commit top",
            'qemu-io top "write -q -P 6 0 64k"',
            "info block -n top",
        ],
        ours_in,
    )
    assert answers[:5] == [
        "",
        "'commit' error for 'r': Operation not supported\n",
        "4 MiB (0x400000) bytes not allocated at offset 0 bytes (0x0)\n",
        "",
        "",
    ]
    assert answers[5] == ""
    assert "Backing file:     base.qcow2 (chain depth: 1)\n" in answers[6]
    images.assert_identical(theirs_in / "base.qcow2", ours_in / "base.qcow2")
    for name in ("base.qcow2", "top.qcow2"):
        images.check(ours_in / name)


def test_commit_spares_other_overlays(images: QemuImages, folders: tuple[Path, Path]) -> None:
    """A second overlay of the same base would change under its user: that is refused."""
    folder = folders[1]
    images.create(folder / "other.qcow2", backing="base.qcow2")
    serve = Serve(cwd=folder)
    try:
        file = {"driver": "file", "filename": "base.qcow2"}
        assert "return" in serve.ask("blockdev-add", driver="qcow2", node_name="base", file=file)
        for name in ("top", "other"):
            file = {"driver": "file", "filename": f"{name}.qcow2"}
            assert "return" in serve.ask("blockdev-add", driver="qcow2", node_name=name, file=file, backing="base")
        guest = {"id": "disk", "node_name": "other", "iops": 1, "write_percent": 0}
        assert "return" in serve.ask("x-blockmon-guest-add", **guest)
        before = serve.ask("x-debug-query-block-graph")["return"]["edges"]
        answer = serve.ask("human-monitor-command", command_line="commit top")["return"]
        assert answer.startswith("Error: Permission conflict on node 'base'")
        # Everything is as it was.
        edges = serve.ask("x-debug-query-block-graph")["return"]["edges"]
        assert len(edges) == len(before)
        assert "return" in serve.ask("quit")
        assert serve.wait() == 0
    finally:
        serve.close()
    images.io(folder / "base.qcow2", "read -P 3 0 128k")
