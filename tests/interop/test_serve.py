"""`blockmon serve` from outside: the wire beside qemu-storage-daemon's, real clients, start and end."""

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, QMPClient

from tests.interop.serving import BLOCKMON, TIMEOUT, Serve, talking
from tests.qemu import QemuImages, StorageDaemon

Start = Callable[..., Serve]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Start `blockmon serve` with options; it ends with the test."""
    running: list[Serve] = []

    def start(*args: str | Path, **options: Any) -> Serve:
        running.append(Serve(*args, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()


# -- the wire -----------------------------------------------------------------------------------------------------

# Each is one line; those in the first group come before negotiation.
BEFORE = rb"""
{"execute":"query-version"}
{"execute":"nope"}
[1]
{"execute":"query-version","foo":1}
{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}
{"execute":"qmp_capabilities","arguments":{"x":1}}
{"exec-oob":"query-version"}
""".strip().splitlines()
NEGOTIATE = rb'{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob"]},"id":{"x":1}}'
AFTER = (
    rb"""
{"execute":"qmp_capabilities","id":3}
{"execute":"qmp_capabilities","arguments":{"enable":["oob"],"x":1}}
{"exec-oob":"query-version","id":3}
{"exec-oob":"nope","id":3}
{"exec-oob":"query-version","execute":"a","id":4}
{"execute":"query-version","exec-oob":"a","id":5}
{"exec-oob":5,"id":6}
{"exec-oob":"query-version","arguments":{"x":1}}
{"exec-oob":"query-version","foo":{"x":1}}
{"exec-oob":"qmp_capabilities"}
{"execute":5,"id":7}
{"execute":5,"arguments":5}
{"execute":5,"foo":5}
{"arguments":5,"foo":5}
{"execute":"query-version","arguments":[],"id":8}
{"execute":"query-version","arguments":{"a":1},"id":9}
{"id":1,"execute":"query-version","arguments":{"a":{"b":[1]}}}
{"execute":"query-version","foo":1,"id":10}
{"foo":1,"id":11}
{"id":12}
{}
"abc"
'abc'
5
[[[[{}]]]]
nope
{"arguments":[],"execute":"query-version","foo":1}
{"foo":2,"execute":"query-version","arguments":[]}
{"id":13,"id":14}
{"execute": "query-version" "id": 1}
{"execute":"query-versio@","id":16}
@
{"execute":"nope\u0000"}
{"execute":"query-version","id":"\u20ac\ud83d\ude00\u007f"}
{"execute":"query-version","id":1.5}
{"execute":"query-version","id":-0.0}
{"execute":"query-version","id":1e400}
{"execute":"query-version","id":18446744073709551616}
{"execute":"query-version","id":[true,null,{"a":[]}]}
{'execute':'query-version','id':'single"'}
{"execute":"block_resize","arguments":{"device":"x","size":1.5}}
{"execute":"block_resize","arguments":{"device":"x","size":-1}}
{"execute":"block_resize","arguments":{"device":"x","size":99999999999999999999}}
{"execute":"blockdev-add","arguments":{"driver":"nope"}}
{"execute":"blockdev-add","arguments":{"driver":"file"}}
{"execute":"\u00e9"}
""".strip().splitlines()
    + [b'{"execute":"query-version","id":15\n}}']
)
NOISE = [
    b"\xff",
    b'{"exec\x01ute":1}',
    b'{"a":"\xff"}',
    b'{"execute":"query-version"}\xc3\x28',
    b'{"id":"\xff"}{"execute":',
    b"",
    b'"query-version"}',
    b"\xff",
]
VERSION = re.compile(rb'"version": \{.*?\}, "package": "[^"]*"\}|"return": \{"qemu": \{[^}]*\}, "package": "[^"]*"\}')


def conversation(command: list[str], steps: list[bytes]) -> list[bytes]:
    """All that a QMP server on standard streams says to *steps*, each sent when the one before is answered."""
    said: list[bytes] = []
    with talking(command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, step in enumerate(steps):
            process.stdin.write(step + b'\n{"execute":"query-version","id":"step %d"}\n' % number)
            process.stdin.flush()
            while not said or b'"step %d"' % number not in said[-1]:
                line = process.stdout.readline()
                assert line, said
                said.append(VERSION.sub(b"V", line))
    return said


@pytest.mark.parametrize(
    "steps", [[*BEFORE, NEGOTIATE, *AFTER], [NEGOTIATE, b"\n".join(NOISE)]], ids=["plain", "noise"]
)
def test_every_answer_is_the_daemon_s(qsd: str, steps: list[bytes]) -> None:
    options = ["--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control"]
    theirs = conversation([qsd, *options], steps)
    assert conversation([*BLOCKMON, *options], steps) == theirs


def test_pretty(qsd: str) -> None:
    def first_lines(command: list[str]) -> list[bytes]:
        options = ["--chardev", "stdio,id=m", "--monitor", '{"chardev": "m", "pretty": true}']
        with talking([*command, *options]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b'{"execute": "qmp_capabilities"}{"execute": "nope", "id": [1, {}]}')
            process.stdin.flush()
            # The order of the members of a version is nobody's business.
            return [process.stdout.readline() for _ in range(30)][9:]

    assert first_lines(BLOCKMON) == first_lines([qsd])


# -- clients ------------------------------------------------------------------------------------------------------


def chain(images: QemuImages, folder: Path) -> list[str]:
    """Options that open top.qcow2 over base.qcow2 as the node top."""
    images.create(folder / "base.qcow2", "4M")
    images.io(folder / "base.qcow2", "write -P 3 0 1M")
    images.create(folder / "top.qcow2", backing="base.qcow2")
    return ["--blockdev", f"qcow2,node-name=top,file.driver=file,file.filename={folder}/top.qcow2"]


def test_the_asyncio_client(serve: Start, images: QemuImages, tmp_path: Path) -> None:
    """qemu.qmp: negotiation, commands, errors, events; two clients at once on one socket."""
    path = tmp_path / "qmp"
    server = serve(*chain(images, tmp_path), "--qmp", f"unix:{path}")

    async def talk() -> None:
        worker, watcher = QMPClient("worker"), QMPClient("watcher")
        await worker.connect(str(path))
        await watcher.connect(str(path))
        assert worker.greeting is not None
        assert worker.greeting.QMP.version["qemu"]["major"] == 7
        listener = EventListener(names=("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED"))
        with watcher.listen(listener):
            await worker.execute("block-stream", {"device": "top", "job-id": "j"})
            seen = []
            async for event in listener:
                seen.append(event["data"].get("status", event["event"]))
                if seen[-1] == "null":
                    break
        assert seen == ["created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
        with pytest.raises(Exception, match="Device 'nope' not found"):
            await worker.execute("block-commit", {"device": "nope"})
        names = {node["node-name"] for node in await watcher.execute("query-named-block-nodes")}
        assert "top" in names
        await worker.disconnect()
        assert await watcher.execute("query-jobs") == []
        await watcher.disconnect()

    asyncio.run(asyncio.wait_for(talk(), TIMEOUT))
    assert "return" in server.ask("quit")
    assert server.wait() == 0
    images.check(tmp_path / "top.qcow2")


def test_qmp_shell(serve: Start, images: QemuImages, tmp_path: Path) -> None:
    shell = shutil.which("qmp-shell", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shell is not None
    path = tmp_path / "qmp"
    server = serve(*chain(images, tmp_path), "--qmp", f"unix:{path}")
    lines = [
        "query-version",
        "blockdev-add driver=null-co node-name=n size=65536",
        "block-stream device=top job-id=j",
        "",  # it shows events then
        "no-such-command",
        "query-named-block-nodes flat=true",
        "quit",
    ]
    done = subprocess.run(
        ["timeout", str(TIMEOUT), shell, str(path)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert "Connected to QEMU 7.2.22" in done.stdout
    assert "The command no-such-command has not been found" in done.stdout
    assert '"node-name": "n"' in done.stdout
    assert "JOB_STATUS_CHANGE" in done.stdout
    assert server.wait() == 0


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(TIMEOUT)
    client.connect(str(path))
    return client


def test_hmp_over_a_socket(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "hmp"
    serve("--hmp", f"unix:{path}")
    with connect(path) as client:
        client.sendall(b"help quit\n")
        data = b""
        while not data.endswith(b"emulator\r\n(qemu) "):
            data += client.recv(65536)
        assert data.startswith(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) h\x1b[K")


def test_hmp_on_a_terminal() -> None:
    """The monitor echoes, not the terminal, which is as it was afterwards."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def read_to(end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            data += os.read(master, 4096)
        return data.replace(b"\r\r\n", b"\r\n")  # the terminal adds its own

    process = subprocess.Popen([*BLOCKMON, "--hmp", "stdio"], stdin=slave, stdout=slave)
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    try:
        read_to(b"(qemu) ")
        mode = termios.tcgetattr(slave)[3]
        assert not mode & (termios.ECHO | termios.ICANON)
        assert mode & termios.ISIG
        os.write(master, b"info block-jobs\r")
        assert read_to(b"(qemu) ").endswith(b"info block-jobs\x1b[K\r\nNo active jobs\r\n(qemu) ")
        os.write(master, b"q\r")
        assert process.wait(TIMEOUT) == 0
        assert termios.tcgetattr(slave) == before
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_a_monitor_that_connects(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "manager"
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(str(path))
        manager.listen()
        manager.settimeout(TIMEOUT)
        serve("--qmp", f"unix:{path},server=off")
        with manager.accept()[0] as client, client.makefile("rb") as lines:
            assert b'"QMP"' in lines.readline()


def test_tcp(serve: Start, tmp_path: Path) -> None:
    server = serve("--qmp", "tcp:127.0.0.1:0")
    chardevs = server.ask("query-chardev")["return"]
    found = re.fullmatch(r"disconnected:tcp:127\.0\.0\.1:(\d+),server=on", chardevs[0]["filename"])
    assert found is not None
    with socket.create_connection(("127.0.0.1", int(found[1])), TIMEOUT) as client, client.makefile("rb") as lines:
        assert b'"QMP"' in lines.readline()


def test_a_monitor_is_what_the_daemon_says_it_is(
    start_qsd: Callable[..., StorageDaemon], serve: Start, tmp_path: Path
) -> None:
    """query-chardev of a listening and a connected socket."""

    def chardevs(ask: Callable[[str], Any], path: Path) -> dict[str, Any]:
        with connect(path) as client:
            assert client.recv(10)
            return {chardev["label"]: chardev for chardev in ask("query-chardev")}

    def options(folder: Path) -> list[str]:
        folder.mkdir()
        return [
            *("--chardev", f"socket,id=c,path={folder}/c,server=on,wait=off", "--monitor", "c"),
            *("--chardev", f"socket,id=d,path={folder}/d,server=on,wait=off"),
            *("--chardev", "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off"),
        ]

    theirs = chardevs(start_qsd(*options(tmp_path / "theirs")).execute, tmp_path / "theirs" / "c")
    server = serve(*options(tmp_path / "ours"))
    ours = chardevs(lambda command: server.ask(command)["return"], tmp_path / "ours" / "c")
    for label in ("c", "d", "t"):
        expected = json.dumps(theirs[label]).replace("/theirs/", "/ours/")
        assert re.sub(r":\d+", ":N", json.dumps(ours[label], sort_keys=True)) == re.sub(
            r":\d+", ":N", json.dumps(json.loads(expected), sort_keys=True)
        )


# -- start --------------------------------------------------------------------------------------------------------


def refused(*args: str | Path) -> str:
    """What `blockmon serve` says when it does not start."""
    done = subprocess.run(
        ["timeout", str(TIMEOUT), *BLOCKMON, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1, done
    return done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blockdev", "foo"], "Parameter 'driver' does not accept value 'foo'"),
        (["--blockdev", "driver=file,filename=/nope"], "'node-name' must be specified for the root node"),
        (["--blockdev", "file,node-name=x,filename=/nope"], "Could not open '/nope': No such file or directory"),
        (["--blockdev", '{"driver"'], "JSON parse error, premature EOI"),
        (["--blockdev", "raw,node-name=a,file=later"], "Cannot find device='later' nor node-name='later'"),
        (["--blockdev", "null-co,node-name=a,size=x"], "Parameter 'size' expects integer"),
        (["--blockdev", "help"], "Help is not available for this option"),
        (["--chardev", "foo,id=m"], "'foo' is not a valid char driver name"),
        (["--chardev", "stdio"], "chardev: no id specified"),
        (["--chardev", "id=m"], 'chardev: "m" missing backend'),
        (["--chardev", "socket,id=m,host=1"], "chardev: socket: no port given"),
        (["--chardev", "socket,id=m,path=a,foo=1"], "Invalid parameter 'foo'"),
        (["--chardev", "stdio,id=m,signal=maybe"], "Parameter 'signal' expects 'on' or 'off'"),
        (["--chardev", "socket,id=m,path=/nodir/s"], "Failed to connect to '/nodir/s': No such file or directory"),
        (
            ["--chardev", "socket,id=m,path=/nodir/s,server=on,wait=off"],
            "Failed to bind socket to /nodir/s: No such file or directory",
        ),
        (["--chardev", "socket,id=m,host=127.0.0.1,port=1"], "Failed to connect to '127.0.0.1:1': Connection refused"),
        (["--chardev", "stdio,id=m", "--chardev", "stdio,id=n"], "cannot use stdio by multiple character devices"),
        (["--monitor", "chardev=x"], 'chardev "x" not found'),
        (["--monitor", "mode=control"], "Parameter 'chardev' is missing"),
        (["--chardev", "stdio,id=m", "--monitor", "m", "--monitor", "m"], "Device 'm' is in use"),
        (["--chardev", "stdio,id=m", "--monitor", "m,foo=1"], "Parameter 'foo' is unexpected"),
        (["--chardev", "stdio,id=m", "--monitor", "m,pretty=x"], "Parameter 'pretty' expects 'on' or 'off'"),
    ],
)
def test_errors_name_the_option_as_the_daemon_s(qsd: str, options: list[str], message: str) -> None:
    said = refused(*options)
    assert said == f"blockmon: {options[-2]} {options[-1]}: {message}\n"
    theirs = subprocess.run(
        ["timeout", str(TIMEOUT), qsd, *options], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert theirs.returncode == 1
    # For a syntax error of JSON the daemon leaves out one of its colons.
    assert theirs.stderr.replace('{"driver":', '{"driver"').replace(":", "") == said.replace(":", "").replace(
        "blockmon", "qemu-storage-daemon"
    )


def test_errors_of_our_own_options(tmp_path: Path) -> None:
    assert refused("--qmp", "foo") == "blockmon: --qmp foo: expects unix:PATH, tcp:HOST:PORT or stdio\n"
    image = tmp_path / "disk.raw"
    image.write_bytes(b"precious")
    assert refused("--hmp", f"unix:{image}").endswith("Address already in use\n")
    assert image.read_bytes() == b"precious"
    assert refused("--pidfile", "/nodir/p") == (
        "blockmon: --pidfile /nodir/p: Could not create '/nodir/p': No such file or directory\n"
    )


def test_a_failed_start_leaves_nothing_behind(tmp_path: Path) -> None:
    refused("--qmp", f"unix:{tmp_path}/a", "--pidfile", f"{tmp_path}/p", "--hmp", f"unix:{tmp_path}/nodir/b")
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_is_replaced(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    first = serve("--qmp", f"unix:{path}")
    first.process.kill()
    first.wait()
    assert path.exists()
    serve("--qmp", f"unix:{path}")
    connect(path).close()


def pid_in(pidfile: Path, server: Serve) -> int:
    """What the pid file says; it comes last, also behind the first answers."""
    while not pidfile.exists() or not pidfile.read_text():
        assert server.process.poll() is None
    return int(pidfile.read_text())


# -- end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_the_end(serve: Start, images: QemuImages, tmp_path: Path, number: signal.Signals | None) -> None:
    """By a signal or by quit: status 0; data written, image clean, lock given back, files removed."""
    path, pidfile = tmp_path / "qmp", tmp_path / "pid"
    server = serve(*chain(images, tmp_path), "--qmp", f"unix:{path}", "--pidfile", pidfile)
    client = connect(path)
    answer = server.ask("human-monitor-command", command_line='qemu-io top "write -P 9 2M 1M"')
    assert answer["return"].startswith("wrote 1048576/1048576")
    assert pid_in(pidfile, server) == server.process.pid
    if number is None:
        assert server.ask("quit") == {"return": {}}
    else:
        server.process.send_signal(number)
    assert server.wait() == 0
    assert not path.exists()
    assert not pidfile.exists()
    while client.recv(65536):
        pass
    client.close()
    images.check(tmp_path / "top.qcow2")
    images.io(tmp_path / "top.qcow2", "read -P 9 2M 1M", "read -P 3 0 1M")


def test_a_running_job_is_cancelled_and_told_of(serve: Start, images: QemuImages, tmp_path: Path) -> None:
    server = serve(*chain(images, tmp_path))
    assert "return" in server.ask("human-monitor-command", command_line='qemu-io top "write -q 0 64k"')
    assert "return" in server.ask("block-commit", device="top", job_id="j")
    server.wait_event("BLOCK_JOB_READY")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_event("BLOCK_JOB_CANCELLED")["data"]["device"] == "j"
    assert server.wait() == 0
    images.check(tmp_path / "top.qcow2")


def test_it_can_be_ended_while_it_waits_for_a_client(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    command = [*BLOCKMON, "--chardev", f"socket,id=m,path={path},server=on"]
    with talking(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"blockmon: waiting for connection on: disconnected:unix:{path},server=on\n"
        assert path.exists()
        process.terminate()
        assert process.wait(TIMEOUT) == 0
        assert not path.exists()


def test_the_pid_file_is_locked(serve: Start, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    server = serve("--pidfile", pidfile)
    assert pid_in(pidfile, server) == server.process.pid
    assert refused("--pidfile", pidfile).endswith("Cannot lock pid file: Resource temporarily unavailable\n")
    assert int(pidfile.read_text()) == server.process.pid


def test_the_end_of_input_ends_nothing(serve: Start, tmp_path: Path) -> None:
    """As the daemon: the monitor on standard streams is gone, the program and its other monitors are not."""
    path = tmp_path / "qmp"
    server = serve("--qmp", f"unix:{path}")
    assert server.process.stdin is not None
    server.process.stdin.close()
    with connect(path) as client, client.makefile("rb") as lines:
        lines.readline()
        client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
        assert [lines.readline(), lines.readline()] == [b'{"return": {}}\r\n', b'{"return": {}}\r\n']
    assert server.process.wait(TIMEOUT) == 0
