"""The nbd driver on servers that die and come back, and what qemu-nbd and TLS are like from it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import QMPError
from tests.engine.objects.certificates import Authority
from tests.interop.differential import Call, Do, Step, WaitEvent, assert_same
from tests.interop.nbd_servers import MIB, SIZE, Disk, Server, churn, nbdkit, qemu_nbd
from tests.qemu import QemuImages


@pytest.fixture
def running() -> Iterator[list[Server]]:
    """Servers to be ended with the test."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.end()


# -- servers that die ------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    content = random.Random(5).randbytes(SIZE)
    (tmp_path / "a.raw").write_bytes(content)
    return content


@pytest.mark.usefixtures("qemu_nbd")
@pytest.mark.parametrize("threads", [1, 6])
def test_a_job_goes_on_when_its_server_is_killed_and_started_again(
    threads: int, tmp_path: Path, image: bytes, running: list[Server]
) -> None:
    """A mirror to a qemu-nbd that is killed twice ends with everything there, what the guest wrote meanwhile too."""
    (tmp_path / "source.raw").write_bytes(image)
    (tmp_path / "a.raw").write_bytes(bytes(SIZE))
    server = qemu_nbd(tmp_path)
    with Disk(tmp_path, reconnect_delay=60) as disk:
        file = {"driver": "file", "filename": str(tmp_path / "source.raw")}
        disk.do("blockdev-add", driver="raw", node_name="source", file=file)
        disk.do("blockdev-mirror", job_id="j", device="source", target="n", sync="full", speed=MIB)
        source: Any = disk.engine.graph.nodes["source"]
        writers = [
            threading.Thread(target=source.write, args=(number * 4096, memoryview(bytes([number]) * 4096)))
            for number in range(threads)
        ]
        for _ in range(2):
            server.kill()
            for writer in writers:
                if not writer.ident:
                    writer.start()
            assert disk.do("query-jobs")[0]["status"] == "running"
            server = qemu_nbd(tmp_path)
        disk.do("block-job-set-speed", device="j", speed=0)
        disk.event("BLOCK_JOB_READY")
        for writer in writers:
            writer.join(20)
        disk.do("block-job-cancel", device="j")
        assert "error" not in disk.event("BLOCK_JOB_COMPLETED")
    server.end()
    assert (tmp_path / "a.raw").read_bytes() == (tmp_path / "source.raw").read_bytes() != image


@pytest.mark.usefixtures("qemu_nbd")
def test_a_job_stops_at_the_error_and_goes_on_with_the_server(
    tmp_path: Path, image: bytes, running: list[Server]
) -> None:
    """Without a delay the job's policy decides: it pauses, and what was copied in the end is all of it."""
    server = qemu_nbd(tmp_path)
    with Disk(tmp_path) as disk:
        target = {"driver": "file", "filename": str(tmp_path / "copy.raw")}
        (tmp_path / "copy.raw").write_bytes(bytes(SIZE))
        disk.do("blockdev-add", driver="raw", node_name="t", file=target)
        job = {"job_id": "j", "device": "n", "target": "t", "sync": "full", "speed": MIB}
        disk.do("blockdev-backup", **job, on_source_error="stop")
        server.kill()
        told = disk.event("BLOCK_JOB_ERROR")
        assert (told["operation"], told["action"]) == ("read", "stop")
        (shown,) = disk.do("query-block-jobs")
        assert (shown["io-status"], shown["paused"]) == ("failed", True)
        running.append(qemu_nbd(tmp_path))
        disk.back()
        disk.do("block-job-set-speed", device="j", speed=0)
        disk.do("block-job-resume", device="j")
        assert "error" not in disk.event("BLOCK_JOB_COMPLETED")
    assert (tmp_path / "copy.raw").read_bytes() == image


class Mortal:
    """qemu-nbd for each side of a conversation, killed and started in its course."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def start(self, where: Path) -> None:
        self._server = qemu_nbd(where)

    def kill(self, where: Path) -> None:
        assert self._server is not None
        self._server.kill()
        self._server = None

    def kill_and_start(self, where: Path) -> None:
        self.kill(where)
        self.start(where)

    def close(self) -> None:
        if self._server is not None:
            self._server.end()


@pytest.fixture
def mortal() -> Iterator[Mortal]:
    mortal = Mortal()
    yield mortal
    mortal.close()


def add(**options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do(
        "blockdev-add", {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": "$DIR/sock"}} | given
    )


NULL = Do("blockdev-add", {"driver": "null-co", "node-name": "z", "size": SIZE, "read-zeroes": True})


def job(command: str, **options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do(command, {"job-id": "j", "device": "n", "target": "z", "sync": "full", "speed": 4 * MIB} | given)


ENDED = WaitEvent("JOB_STATUS_CHANGE", {"status": "null"})


def deaf(where: Path) -> None:
    """From now on there is somebody at the server's address who takes connections and says nothing."""
    (where / "sock").unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(where / "sock"))
    listening.listen()
    DEAF.append(listening)


def busy(where: Path) -> None:
    """The same, but connections are not even taken: as many wait as there is room for."""
    deaf(where)
    DEAF[-1].listen(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            DEAF.append(client)
            client.connect(str(where / "sock"))


DEAF: list[socket.socket] = []


def deaths(mortal: Mortal) -> dict[str, list[Step]]:
    kill, restart = Call(mortal.kill), Call(mortal.kill_and_start)
    back = job("blockdev-backup", device="z", target="n", on_target_error="report")
    return {
        "backup of it": [add(), NULL, job("blockdev-backup"), kill, ENDED, Do("query-jobs")],
        "backup to it": [add(), NULL, back, kill, ENDED],
        # Not a mirror: the daemon tells an error for each of the requests that it had in flight.
        "a delay that ends": [add(reconnect_delay=1), NULL, job("blockdev-backup"), kill, ENDED],
        "in time": [
            *(add(reconnect_delay=30), NULL, job("blockdev-backup"), restart),
            *(WaitEvent("BLOCK_JOB_COMPLETED"), ENDED, Do("query-jobs")),
        ],
        "deleted while it is away": [add(), kill, Do("blockdev-del", {"node-name": "n"}), add()],
        "a silent server": [Call(deaf), add(open_timeout=1)],
        "a server that takes nobody": [Call(busy), add(open_timeout=1)],
        "opened too early": [kill, add(open_timeout=1), Call(mortal.start), add(open_timeout=1)],
    }


@pytest.mark.usefixtures("qemu_nbd", "qsd")
@pytest.mark.parametrize("case", deaths(Mortal()))
def test_deaths_are_taken_as_the_daemon_does(case: str, mortal: Mortal, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        mortal.close()
        (where / "a.raw").write_bytes(random.Random(5).randbytes(SIZE))
        mortal.start(where)

    # How far a job came is a matter of luck.
    ignore = ("offset", "current-progress", "total-progress", "len") if case != "in time" else ()
    try:
        assert_same(deaths(mortal)[case], tmp_path, prepare=prepare, ignore=ignore)
    finally:
        while DEAF:
            DEAF.pop().close()


@pytest.mark.usefixtures("qemu_nbd")
def test_a_server_that_comes_within_the_open_timeout(tmp_path: Path, image: bytes, running: list[Server]) -> None:
    late = threading.Timer(0.3, lambda: running.append(qemu_nbd(tmp_path)))
    late.start()
    try:
        with Disk(tmp_path, open_timeout=30, read_only=True) as disk:
            assert disk.read(0, 100) == image[:100]
    finally:
        late.join()


# -- what qemu-nbd offers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("qemu_nbd")
@pytest.mark.parametrize("context", [None, "qemu:dirty-bitmap:b", "qemu:allocation-depth"])
def test_the_status_is_that_of_the_context_asked_for(
    context: str | None, tmp_path: Path, images: QemuImages, running: list[Server]
) -> None:
    lowest = images.create(tmp_path / "lowest.qcow2", SIZE)
    images.io(lowest, "write -P 3 3M 64k")
    below = images.create(tmp_path / "below.qcow2", backing=lowest)
    images.io(below, "write -P 4 3200k 64k")
    image = images.create(tmp_path / "a.qcow2", backing=below)
    images.run("bitmap", "--add", image, "b")
    images.io(image, "write -P 1 64k 128k", "write -P 2 1M 64k", "write -z 2M 64k")
    command = ("qemu-nbd", "-k", tmp_path / "sock", "-t", "-r", "-A", "-B", "b", "-f", "qcow2", image)
    running.append(Server(tmp_path / "sock", *command))
    options = {"x_dirty_bitmap": context} if context else {}
    with Disk(tmp_path, read_only=True, **options) as disk:
        ours = disk.extents(SIZE)
    node = f"driver=nbd,server.type=unix,server.path={tmp_path}/sock"
    node += f",x-dirty-bitmap={context}" if context else ""
    told = json.loads(images.run("map", "--output=json", "--image-opts", node))
    assert ours == [(piece["length"], piece["data"], piece["zero"]) for piece in told]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name, content in Authority().files().items():
        (folder / name).write_bytes(content)
    (folder / "keys.psk").write_text(f"qemu:{random.Random(1).randbytes(32).hex()}\n")
    return folder


@contextlib.contextmanager
def secure_server(kind: str, creds: str, keys: Path, folder: Path) -> Iterator[None]:
    """A server of TLS that serves a.raw of *folder* under the empty name; *keys*: the folder of all credentials."""
    image = folder / "a.raw"
    image.write_bytes(bytes(SIZE))
    if kind == "ours":
        host = Engine()
        try:
            host.execute(
                "object-add", {"qom-type": f"tls-creds-{creds}", "id": "t", "endpoint": "server", "dir": str(keys)}
            )
            address = {"type": "unix", "data": {"path": str(folder / "sock")}}
            host.execute("nbd-server-start", {"addr": address, "tls-creds": "t"})
            file = {"driver": "file", "filename": str(image)}
            host.execute("blockdev-add", {"driver": "raw", "node-name": "a", "file": file})
            host.execute("block-export-add", {"type": "nbd", "id": "a", "node-name": "a", "name": "", "writable": True})
            yield
        finally:
            host.close()
        return
    if kind == "qemu-nbd":
        what = f"tls-creds-{creds},id=t,endpoint=server,dir={keys}"
        server = qemu_nbd(folder, "--object", what, "--tls-creds", "t")
    else:
        x509 = [f"--tls-certificates={keys}", "--tls-verify-peer"]
        server = nbdkit(
            folder, "--tls=require", *(x509 if creds == "x509" else [f"--tls-psk={keys}/keys.psk"]), "file", image
        )
    try:
        yield
    finally:
        server.end()


@pytest.mark.usefixtures("qemu_nbd")
@pytest.mark.parametrize("creds", ["x509", "psk"])
@pytest.mark.parametrize("kind", ["qemu-nbd", "nbdkit", "ours"])
def test_tls(kind: str, creds: str, tmp_path: Path, certificates: Path) -> None:
    with secure_server(kind, creds, certificates, tmp_path):
        with pytest.raises(QMPError):
            Disk(tmp_path)
        with pytest.raises(QMPError, match="No TLS credentials with id 'nope'"):
            Disk(tmp_path, tls_creds="nope")
        if creds == "x509":
            with pytest.raises(QMPError, match="Certificate does not match the hostname another"):
                Disk(tmp_path, creds, certificates, tls_creds="t", tls_hostname="another")
        hostname = {"tls_hostname": "server"} if creds == "x509" else {}
        with Disk(tmp_path, creds, certificates, tls_creds="t", **hostname) as disk:
            churn(disk, bytearray(SIZE))
