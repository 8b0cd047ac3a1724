"""The nbd driver and the NBD server inside TLS: one clear error for what fails, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError, QMPError
from engine.nbd import protocol as nbd
from engine.nbd.negotiation import Wishes, negotiate
from engine.nbd.stream import Stream
from tests.engine.objects.certificates import Authority, write_folders

MIB = 1 << 20
OLDER = "NORMAL:-VERS-TLS1.3"
KEY = "00112233445566778899aabbccddeeff"
ALERT = "TLS handshake failed: A TLS fatal alert has been received."
REFUSED = r"Failed to (read option reply|send option request header): "
"""What a client says that is turned away after the handshake."""
VERSIONS = pytest.mark.parametrize("priority", ["NORMAL", OLDER])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of credentials: those of certificates, ``keys``, and ``wrong`` with another key."""
    root = tmp_path_factory.mktemp("tls")
    write_folders(root)
    for name, lines in (("keys", f"qemu:{KEY}\nfred:{KEY}00\n"), ("wrong", f"qemu:{KEY}00\nghost:{KEY}\n")):
        (root / name).mkdir()
        (root / name / "keys.psk").write_text(lines)
    return root


class Secure:
    """A server of TLS with one disk, and clients of it. Credentials are folder names of *folders*."""

    def __init__(self, folder: Path, folders: Path) -> None:
        self.path = folder / "sock"
        self.folders = folders
        self.engines: list[Engine] = []
        self.server = self.engine()
        (folder / "a.raw").write_bytes(bytes(MIB))
        file = {"driver": "file", "filename": str(folder / "a.raw")}
        self.server.execute("blockdev-add", {"driver": "raw", "node-name": "a", "file": file})

    def engine(self) -> Engine:
        self.engines.append(Engine())
        return self.engines[-1]

    def creds(self, engine: Engine, kind: str, endpoint: str, folder: str, **options: Any) -> None:
        what = {"qom-type": f"tls-creds-{kind}", "id": "t", "endpoint": endpoint, "dir": str(self.folders / folder)}
        engine.execute("object-add", {**what, **{name.replace("_", "-"): value for name, value in options.items()}})

    def serve(self, **options: Any) -> None:
        address = {"type": "unix", "data": {"path": str(self.path)}}
        self.server.execute("nbd-server-start", {"addr": address, "tls-creds": "t", **options})
        export = {"type": "nbd", "id": "e", "node-name": "a", "name": "", "writable": True}
        self.server.execute("block-export-add", export)

    def connect(self, kind: str, folder: str, node: dict[str, Any] | None = None, **options: Any) -> Any:
        """A node in an engine of its own."""
        engine = self.engine()
        self.creds(engine, kind, "client", folder, **options)
        server = {"type": "unix", "path": str(self.path)}
        add = {"driver": "nbd", "node-name": "n", "server": server, "tls-creds": "t", **(node or {})}
        engine.execute("blockdev-add", add)
        return engine.graph.nodes["n"]

    def close(self) -> None:
        # The server's last: a node that is closed says good-bye.
        for engine in reversed(self.engines):
            engine.close()


@pytest.fixture
def secure(tmp_path: Path, folders: Path) -> Iterator[Secure]:
    before = set(threading.enumerate())
    secure = Secure(tmp_path, folders)
    yield secure
    secure.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread


def read(node: Any, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    node.read(offset, memoryview(buffer))
    return bytes(buffer)


@VERSIONS
def test_keys_known_beforehand(secure: Secure, priority: str, caplog: pytest.LogCaptureFixture) -> None:
    """Those who know no key are told so; who knows one goes on undisturbed."""
    secure.creds(secure.server, "psk", "server", "keys", priority=priority)
    secure.serve()
    node = secure.connect("psk", "keys")
    node.write(5, memoryview(b"hello"))
    for folder, username, hint in (
        ("wrong", "qemu", "illegal parameter" if priority == "NORMAL" else "bad record mac"),
        ("wrong", "ghost", "handshake failure" if priority == "NORMAL" else "unknown psk identity"),
    ):
        with pytest.raises(QMPError) as failure:
            secure.connect("psk", folder, username=username)
        assert (failure.value.desc, failure.value.hint) == (ALERT, f"server reported: {hint}")
    for kind in ("anon", "x509"):
        with pytest.raises(QMPError) as failure:
            secure.connect(kind, "good", {"tls-hostname": "server"} if kind == "x509" else None)
        assert (failure.value.desc, failure.value.hint) == (ALERT, "server reported: handshake failure")
    assert read(node, 5, 5) == b"hello"
    assert read(secure.connect("psk", "keys", username="fred"), 4, 7) == b"\0hello\0"
    assert not caplog.records


@VERSIONS
def test_only_who_knows_the_key_is_the_server(secure: Secure, priority: str) -> None:
    """A certificate is no help to it, whatever the hostname."""
    secure.creds(secure.server, "x509", "server", "good", verify_peer=False)
    secure.serve()
    expected = ALERT if priority == OLDER else "The certificate hasn't got a known issuer"
    for node in (None, {"tls-hostname": "server"}):
        with pytest.raises(QMPError) as failure:
            secure.connect("psk", "keys", node, priority=priority)
        assert failure.value.desc == expected


def test_authorisation_is_about_certificates(secure: Secure) -> None:
    """As in QEMU, whose authz is not asked about keys."""
    secure.creds(secure.server, "psk", "server", "keys")
    secure.serve(**{"tls-authz": "nope"})
    assert read(secure.connect("psk", "keys"), 0, 4) == bytes(4)


def test_a_server_that_comes_back(secure: Secure) -> None:
    secure.creds(secure.server, "psk", "server", "keys")
    secure.serve()
    node = secure.connect("psk", "keys", {"reconnect-delay": 60})
    node.write(0, memoryview(b"before"))
    with ThreadPoolExecutor() as reader:
        for _ in range(2):
            secure.server.execute("nbd-server-stop", {})
            answer = reader.submit(read, node, 0, 6)
            secure.serve()
            assert answer.result(30) == b"before"
    assert len([thread for thread in threading.enumerate() if thread.name == "nbd client"]) == 1


@VERSIONS
@pytest.mark.parametrize(
    ("folder", "hostname", "expected"),
    [
        ("good", "server", None),
        ("good", "another", "Certificate does not match the hostname another"),
        ("good", "::1", "Certificate does not match the hostname ::1"),
        ("good", None, "No hostname for certificate validation"),
        ("other-ca", "server", "The certificate hasn't got a known issuer"),
    ],
)
def test_which_server_is_believed(
    secure: Secure, priority: str, folder: str, hostname: str | None, expected: str | None
) -> None:
    secure.creds(secure.server, "x509", "server", "good", verify_peer=False, priority=priority)
    secure.serve()
    node = {} if hostname is None else {"tls-hostname": hostname}
    with contextlib.nullcontext() if expected is None else pytest.raises(QMPError) as failure:
        secure.connect("x509", folder, node, sanity_check=False)
    if failure is not None:
        assert failure.value.desc == expected
    secure.connect("x509", folder, {}, sanity_check=False, verify_peer=False)


@pytest.mark.parametrize(("days", "reason"), [((-9, -1), "has expired"), ((1, 9), "is not yet valid")])
def test_a_certificate_of_another_time(secure: Secure, tmp_path: Path, days: tuple[int, int], reason: str) -> None:
    authority = Authority()
    secure.folders = tmp_path
    for name, data in {**authority.files(), "server-cert.pem": authority.server(days=days)}.items():
        (tmp_path / name).write_bytes(data)
    secure.creds(secure.server, "x509", "server", "", sanity_check=False)
    secure.serve()
    with pytest.raises(QMPError) as failure:
        secure.connect("x509", "", {"tls-hostname": "server"})
    assert failure.value.desc == "The certificate is not trusted"
    assert failure.value.hint is not None
    assert reason in failure.value.hint


def test_a_client_without_a_certificate(secure: Secure) -> None:
    """In TLS 1.3 the server finds out when the client is through with the handshake."""
    secure.creds(secure.server, "x509", "server", "good")
    secure.serve()
    node = {"tls-hostname": "server"}
    with pytest.raises(QMPError) as failure:
        secure.connect("x509", "ca-only", node, priority=OLDER)
    assert (failure.value.desc, failure.value.hint) == (ALERT, "server reported: handshake failure")
    with pytest.raises(QMPError) as failure:
        secure.connect("x509", "ca-only", node)
    assert failure.value.desc == "Failed to read option reply: Cannot read from TLS channel: Input/output error"
    assert failure.value.hint == "server reported: certificate required"
    assert read(secure.connect("x509", "good", node), 0, 4) == bytes(4)


def test_certificates_that_are_revoked(secure: Secure, tmp_path: Path) -> None:
    """By any of several lists, of a CA whose certificate does not say that it may make some."""
    authority = Authority()
    secure.folders = tmp_path
    others, theirs = authority.client(), authority.client()
    files = {**authority.files(), "ca-crl.pem": authority.revocation(others) + authority.revocation(theirs)}
    for folder, client in (("ours", files["client-cert.pem"]), ("others", others), ("theirs", theirs)):
        (tmp_path / folder).mkdir()
        for name, data in {**files, "client-cert.pem": client}.items():
            (tmp_path / folder / name).write_bytes(data)
    secure.creds(secure.server, "x509", "server", "ours")
    secure.serve()
    node = {"tls-hostname": "server"}
    for folder in ("others", "theirs"):
        with pytest.raises(QMPError, match=REFUSED):
            secure.connect("x509", folder, node)
    assert read(secure.connect("x509", "ours", node), 0, 4) == bytes(4)


def test_rules_in_a_file_hold_from_the_next_client_on(secure: Secure, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"policy": "deny"}')
    secure.server.execute("object-add", {"qom-type": "authz-listfile", "id": "who", "filename": str(rules)})
    secure.creds(secure.server, "x509", "server", "good")
    secure.serve(**{"tls-authz": "who"})
    refused = pytest.raises(QMPError, match=REFUSED)
    node = {"tls-hostname": "server"}
    with refused:
        secure.connect("x509", "good", node)
    rules.write_text('{"policy": "deny", "rules": [{"match": "CN=client", "policy": "allow"}]}')
    first = secure.connect("x509", "good", node)
    rules.unlink()
    with refused:
        secure.connect("x509", "good", node)
    assert read(first, 0, 4) == bytes(4)
    secure.server.execute("object-del", {"id": "who"})
    with refused:
        secure.connect("x509", "good", node)


# -- servers that do not do their part -------------------------------------------------------------------------------


class Silent:
    """A server that agrees to TLS, then sends *answer* and waits, or ends the connection."""

    def __init__(self, path: Path, answer: bytes, *, ends: bool) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._answer, self._ends = answer, ends
        self.waits = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listening, contextlib.suppress(OSError):
            sock, _ = self._listening.accept()
            with sock:
                sock.sendall(nbd.MAGIC + nbd.OPTION_MAGIC + struct.pack(">H", nbd.FLAG_FIXED_NEWSTYLE))
                sock.recv(4 + nbd.OPTION.size, socket.MSG_WAITALL)
                sock.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, nbd.OPT_STARTTLS, nbd.REP_ACK, 0))
                sock.recv(1 << 16)
                sock.sendall(self._answer)
                self.waits.set()
                while not self._ends and sock.recv(1 << 16):
                    pass

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "TLS handshake failed: The TLS connection was non-properly terminated."),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS handshake failed: "),
        (bytes.fromhex("15030300020230"), ALERT),
    ],
    ids=["end", "junk", "alert"],
)
def test_a_server_that_gives_up(secure: Secure, answer: bytes, expected: str) -> None:
    server = Silent(secure.path, answer, ends=True)
    with pytest.raises(QMPError) as failure:
        secure.connect("psk", "keys")
    assert failure.value.desc.startswith(expected)
    assert "_ssl" not in failure.value.desc + (failure.value.hint or "")
    server.join()


def test_a_server_that_stops_in_the_handshake(tmp_path: Path, secure: Secure) -> None:
    """open-timeout ends the attempt: the server sees its connection end, and the command is answered."""
    server = Silent(secure.path, b"", ends=False)
    begun = time.monotonic()
    with pytest.raises(QMPError, match="Connection attempt cancelled by timeout"):
        secure.connect("psk", "keys", {"open-timeout": 1})
    assert time.monotonic() - begun < 8
    server.join()


def test_something_said_before_tls(secure: Secure, folders: Path) -> None:
    """What comes in plain behind the agreement is nothing the server said: it may be anybody's."""
    secure.creds(secure.server, "psk", "client", "keys")
    context = secure.server.objects.find("t").context()  # type: ignore[union-attr]
    here, there = socket.socketpair()
    with here, there:
        there.sendall(nbd.MAGIC + nbd.OPTION_MAGIC + struct.pack(">H", nbd.FLAG_FIXED_NEWSTYLE))
        there.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, nbd.OPT_STARTTLS, nbd.REP_ACK, 0) + b"x")
        with pytest.raises(GenericError, match="the server sent something before it"):
            negotiate(Stream(here), Wishes(tls=context))
