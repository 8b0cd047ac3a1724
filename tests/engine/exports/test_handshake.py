"""The NBD handshake, by a client that says everything itself."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path

import pytest

from engine.errors import QMPError
from engine.exports.nbd import handshake
from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone, string
from tests.engine.exports.conftest import SIZE, Serving
from tests.engine.objects.certificates import Authority

ACK = (nbd.REP_ACK, b"")


def kinds(replies: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in replies]


def test_export_name(serving: Serving) -> None:
    for flags, size in ((3, 10), (1, 134), (0, 134)):
        with serving.connect(flags) as client:
            client.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0))
            answer = client.receive(size)
            assert struct.unpack(">QH", answer[:10])[0] == SIZE
            assert not any(answer[10:])
            assert client.write(0, b"abc") == 0
            assert client.read(0, 3) == b"abc"


@pytest.mark.parametrize(
    ("flags", "stream"),
    [
        (4, b""),
        (3, nbd.OPTION.pack(b"IHAVENOT", 3, 0)),
        (3, nbd.OPTION.pack(nbd.OPTION_MAGIC, 3, (32 << 20) + 1)),
        (2, nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_LIST, 0)),
        (3, nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 4) + b"nope"),
        (3, nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 4097) + bytes(4097)),
    ],
)
def test_clients_that_are_dropped(serving: Serving, flags: int, stream: bytes) -> None:
    with serving.connect(flags) as client:
        try:
            client.send(stream)
        except Gone:
            return
        assert client.gone


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (99, b"abc", nbd.REP_ERR_UNSUP),
        (12, b"", nbd.REP_ERR_UNSUP),
        (nbd.OPT_EXTENDED_HEADERS, b"x", nbd.REP_ERR_INVALID),
        (nbd.OPT_LIST, b"x", nbd.REP_ERR_INVALID),
        (nbd.OPT_STARTTLS, b"", nbd.REP_ERR_POLICY),
        (nbd.OPT_STRUCTURED_REPLY, b"x", nbd.REP_ERR_INVALID),
        (nbd.OPT_SET_META_CONTEXT, string("") + bytes(4), nbd.REP_ERR_INVALID),
        (nbd.OPT_LIST_META_CONTEXT, string("nope") + bytes(4), nbd.REP_ERR_UNKNOWN),
        (nbd.OPT_LIST_META_CONTEXT, string("") + b"\xff\xff\xff\xff", nbd.REP_ERR_INVALID),
        (nbd.OPT_LIST_META_CONTEXT, string("") + b"\0\0\0\1" + b"\0\0\0\5x", nbd.REP_ERR_INVALID),
        (nbd.OPT_LIST_META_CONTEXT, string("") + bytes(5), nbd.REP_ERR_INVALID),
        (nbd.OPT_LIST_META_CONTEXT, bytes(2 << 20), nbd.REP_ERR_INVALID),
        (nbd.OPT_INFO, b"", nbd.REP_ERR_INVALID),
        (nbd.OPT_INFO, string("x" * 4097) + bytes(2), nbd.REP_ERR_INVALID),
        (nbd.OPT_INFO, string("") + b"\0\3\0\0", nbd.REP_ERR_INVALID),
        (nbd.OPT_GO, string("nope") + bytes(2), nbd.REP_ERR_UNKNOWN),
        (nbd.OPT_GO, b"\0\0\0\2\xff\xfe" + bytes(2), nbd.REP_ERR_UNKNOWN),
    ],
)
def test_options_that_are_refused(serving: Serving, option: int, data: bytes, error: int) -> None:
    with serving.connect() as client:
        assert kinds(client.option(option, data)) == [error]
        assert client.go()[0] == SIZE  # and on it goes


def test_list_and_abort(serving: Serving) -> None:
    serving.raw("other")
    serving.export("other", "ä", description="the other one")
    with serving.connect() as client:
        assert client.option(nbd.OPT_LIST) == [
            (nbd.REP_SERVER, string("")),
            (nbd.REP_SERVER, string("ä") + b"the other one"),
            ACK,
        ]
        assert client.option(nbd.OPT_ABORT) == [ACK]
        assert client.gone


def test_info(serving: Serving) -> None:
    serving.raw("ro", read_only=True)
    serving.export("ro", "ro", description="words")
    with serving.connect() as client:
        wanted = struct.pack(">HHHH", 3, nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE)
        name, description, sizes, export, last = client.option(nbd.OPT_INFO, string("ro") + wanted)
        assert name[1] == b"\0\1ro"
        assert description[1] == b"\0\2words"
        assert struct.unpack(">HIII", sizes[1]) == (nbd.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)
        flags = nbd.HAS_FLAGS | nbd.READ_ONLY | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.CAN_MULTI_CONN | nbd.SEND_CACHE
        assert struct.unpack(">HQH", export[1]) == (nbd.INFO_EXPORT, SIZE, flags)
        assert last == ACK
        assert client.structured().go("ro") == (SIZE, flags | nbd.SEND_DF)


def test_an_export_with_large_blocks_tells_its_clients(serving: Serving) -> None:
    serving.do("blockdev-add", driver="blkdebug", node_name="big", align=4096, image="disk")
    serving.export("big", "big", writable=True)
    with serving.connect() as client:
        assert kinds(client.option(nbd.OPT_INFO, string("big") + bytes(2)))[-1] == nbd.REP_ERR_BLOCK_SIZE_REQD
        replies = client.option(nbd.OPT_INFO, string("big") + struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE))
        assert replies[-1] == ACK
        assert (nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 4096, 4096, 32 << 20)) in replies
        client.go("big")
        assert client.write(5, b"abc") == 0
        assert client.read(4, 5) == b"\0abc\0"


def test_wildcards_are_for_listing(serving: Serving) -> None:
    with serving.connect() as client:
        client.structured()
        for query, found in (("base:", 1), ("qemu:", 1), ("qemu:dirty-bitmap:", 0), ("base:allocation", 1)):
            listed = client.option(nbd.OPT_LIST_META_CONTEXT, string("") + b"\0\0\0\1" + string(query))
            assert kinds(listed) == [nbd.REP_META_CONTEXT] * found + [nbd.REP_ACK]
            assert all(data[:4] == bytes(4) for _, data in listed[:-1])
        assert client.contexts("", "base:", "qemu:") == []


def test_a_client_that_says_nothing_is_let_go(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIME_LIMIT", 0.2)
    with serving.connect() as client:
        assert client.gone
    serving.wait_no_threads()


def test_idle_clients_that_have_chosen_stay(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIME_LIMIT", 0.2)
    with serving.connect() as client, serving.connect() as silent:
        client.go()
        assert silent.gone  # the time is over
        assert client.read(0, 1) == b"\0"


def test_the_next_client_waits_until_one_leaves(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    try:
        serving.start(max_connections=2)
        serving.raw("disk")
        serving.export("disk")
        first, second = serving.connect(), serving.connect()
        third = socket.socket(socket.AF_UNIX)
        third.connect(str(serving.path))
        third.settimeout(0.1)
        with pytest.raises(TimeoutError):
            third.recv(1)
        first.socket.close()
        third.settimeout(20)
        assert third.recv(18, socket.MSG_WAITALL).startswith(nbd.MAGIC)
        third.close()
        second.socket.close()
    finally:
        serving.engine.close()


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name, content in Authority().files().items():
        (folder / name).write_bytes(content)
    return folder


def start_tls(client: Client, folder: Path, *, certificate: bool = True) -> None:
    assert client.option(nbd.OPT_STARTTLS) == [ACK]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "ca-cert.pem")
    if certificate:
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    client.socket = context.wrap_socket(client.socket)


def refused(client: Client, folder: Path, *, certificate: bool = True) -> bool:
    """Whether the server closes the connection instead of going on with TLS."""
    try:
        start_tls(client, folder, certificate=certificate)
        client.option(nbd.OPT_LIST)
    except (Gone, OSError):
        return True
    return False


@pytest.fixture
def secure(serving: Serving, certificates: Path) -> Serving:
    """The same server with TLS."""
    serving.do("nbd-server-stop")
    serving.do("object-add", **{"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "server"}, dir=str(certificates))
    serving.do("object-add", **{"qom-type": "authz-simple", "id": "ok", "identity": "CN=client"})
    serving.do("object-add", **{"qom-type": "authz-simple", "id": "no", "identity": "CN=somebody"})
    return serving


def test_tls(secure: Serving, certificates: Path) -> None:
    secure.start(tls_creds="tls", tls_authz="ok")
    secure.export("disk", writable=True)
    with secure.connect() as client:
        assert kinds(client.option(nbd.OPT_LIST)) == [nbd.REP_ERR_TLS_REQD]
        assert kinds(client.option(nbd.OPT_GO, string("") + bytes(2))) == [nbd.REP_ERR_TLS_REQD]
        start_tls(client, certificates)
        assert kinds(client.option(nbd.OPT_STARTTLS)) == [nbd.REP_ERR_INVALID]
        client.structured().go()
        assert client.write(0, b"x" * (1 << 20)) == 0
        assert client.read(1, 1 << 20) == b"x" * ((1 << 20) - 1) + b"\0"
        secure.do("block-export-del", id="e-disk", mode="hard")
        with pytest.raises((Gone, OSError)):
            client.read(0, 1)


def test_tls_is_needed(secure: Serving) -> None:
    secure.start(tls_creds="tls")
    secure.export("disk")
    with secure.connect() as client:
        client.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0))
        assert client.gone
    with secure.connect() as client:
        client.option(nbd.OPT_ABORT)
        assert client.gone


@pytest.mark.parametrize("authz", ["no", "nope"])
def test_whom_the_authorization_does_not_know(secure: Serving, certificates: Path, authz: str) -> None:
    secure.start(tls_creds="tls", tls_authz=authz)
    secure.export("disk")
    with secure.connect() as client:
        assert refused(client, certificates)


def test_a_client_without_a_certificate(secure: Serving, certificates: Path) -> None:
    secure.start(tls_creds="tls")
    with secure.connect() as client:
        assert refused(client, certificates, certificate=False)


def test_credentials_that_are_not_there(serving: Serving) -> None:
    serving.do("nbd-server-stop")
    with pytest.raises(QMPError, match="No TLS credentials with id 'nope'"):
        serving.start(tls_creds="nope")
    assert not serving.path.exists()
    serving.start()
