"""The HMP commands of the NBD server beside those of the real qemu-system-x86_64, byte by byte."""

from pathlib import Path

from tests.interop.serving import BLOCKMON, human_monitor

OPTIONS = (
    ("blockdev", "null-co,node-name=n"),
    ("blockdev", "null-co,node-name=ro,read-only=on"),
    ("drive", "file.driver=null-co,file.read-zeroes=on,if=none,id=d0,format=raw"),
)
LINES = """
help nbd_server_start
help nbd_server_add
help nbd_server_remove
help nbd_server_stop
nbd_server_start
nbd_server_start -w unix:sock
nbd_server_start unix:none/sock
nbd_server_start unix:
nbd_server_start fd:
nbd_server_start nothing
nbd_server_start :10809
nbd_server_start host:
nbd_server_start [::1
nbd_server_start 127.0.0.1:0,ipv4=maybe
nbd_server_start 127.0.0.1:0,ipv4=on,,x
nbd_server_start 127.0.0.1:0,to=x
nbd_server_start 127.0.0.1:0,keep-alive=bad
nbd_server_start :
nbd_server_start []:1
nbd_server_start tcp:
nbd_server_start vsock:2:3:4
nbd_server_start vsock:2:3,4
nbd_server_start vsock:a:1
nbd_server_start 127.0.0.1:0,nonsense
nbd_server_stop
nbd_server_start tcp:127.0.0.1:0
nbd_server_stop
nbd_server_add
nbd_server_add n
nbd_server_add nope
nbd_server_remove
nbd_server_remove nope
nbd_server_stop
nbd_server_start unix:sock
nbd_server_start unix:sock
nbd_server_add n
nbd_server_add n
nbd_server_add -w ro other
nbd_server_add -x n
nbd_server_add d0 third
nbd_server_add n a b
nbd_server_remove n
nbd_server_remove -f other
nbd_server_remove other
nbd_server_stop
nbd_server_start -a -w unix:sock
nbd_server_add -w d0
nbd_server_remove d0
nbd_server_stop
nbd_server_stop x
nbd_server_start -a unix:sock
nbd_server_remove -f d0
nbd_server_stop
""".strip("\n").splitlines()


def test_answers_are_qemu_s(qemu_system: str, tmp_path: Path) -> None:
    theirs_in, ours_in = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs_in, ours_in):
        folder.mkdir()
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-qmp", "stdio"]
    theirs = human_monitor([*machine, *(w for o, t in OPTIONS for w in (f"-{o}", t))], LINES, theirs_in)
    ours = human_monitor([*BLOCKMON, *(w for o, t in OPTIONS for w in (f"--{o}", t)), "--qmp", "stdio"], LINES, ours_in)
    for line, their, our in zip(LINES, theirs, ours, strict=True):
        assert our == their, line
