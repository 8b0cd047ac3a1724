"""Keys known beforehand: who has the right one is let in, nobody else is, and no other server is believed."""

from __future__ import annotations

import gc
import ssl
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import GenericError
from engine.objects import psk
from tests.engine.objects.certificates import write_folders
from tests.engine.objects.conftest import Store
from tests.engine.objects.test_tls import shake_hands

KEY = "00112233445566778899aabbccddeeff"
OLDER = "NORMAL:-VERS-TLS1.3"
VERSIONS = pytest.mark.parametrize("priority", ["NORMAL", OLDER])


def keys(folder: Path, *lines: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "keys.psk").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


@VERSIONS
def test_each_user_has_a_key(store: Store, tmp_path: Path, priority: str) -> None:
    folder = keys(tmp_path, f"qemu:{KEY}", f"fred:{KEY}{KEY.upper()}")
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server", priority=priority)
    for number, user in enumerate(({}, {"username": "fred"})):
        client = store.make("tls-creds-psk", f"c{number}", dir=folder, **user)
        assert shake_hands(server, client) == ("TLSv1.2" if priority == OLDER else "TLSv1.3")


@VERSIONS
@pytest.mark.parametrize(
    ("name", "key"),
    [("qemu", KEY[:-1] + "0"), ("fred", KEY), ("qemu", KEY + "00"), ("nobody", KEY)],
    ids=["wrong key", "another user's", "longer key", "unknown user"],
)
def test_who_is_refused(store: Store, tmp_path: Path, priority: str, name: str, key: str) -> None:
    folder = keys(tmp_path / "server", f"qemu:{KEY}", f"fred:{KEY}11")
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server", priority=priority)
    client = store.make("tls-creds-psk", "c", dir=keys(tmp_path / "client", f"{name}:{key}"), username=name)
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)


@VERSIONS
def test_nobody_else_is_believed(store: Store, tmp_path: Path, priority: str) -> None:
    """A server that does not know the key may have any certificate, and a client without a key none that helps."""
    write_folders(tmp_path)
    folder = keys(tmp_path, f"qemu:{KEY}")
    certified = store.make("tls-creds-x509", "xs", dir=f"{tmp_path}/good", endpoint="server", verify_peer=False)
    client = store.make("tls-creds-psk", "c", dir=folder, priority=priority)
    with pytest.raises(ssl.SSLError):
        shake_hands(certified, client)
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server", priority=priority)
    for stranger in (
        store.make("tls-creds-x509", "xc", dir=f"{tmp_path}/good", verify_peer=False),
        store.make("tls-creds-anon", "a"),
    ):
        with pytest.raises(ssl.SSLError):
            shake_hands(server, stranger)


def test_every_suite_needs_the_key_and_encrypts(store: Store, tmp_path: Path) -> None:
    folder = keys(tmp_path, f"qemu:{KEY}")
    for side in ("server", "client"):
        suites = store.make("tls-creds-psk", side, dir=folder, endpoint=side).context().get_ciphers()
        older = [suite for suite in suites if suite["protocol"] != "TLSv1.3"]
        assert {suite["auth"] for suite in older} == {"auth-psk"}
        assert all(suite["strength_bits"] >= 128 for suite in suites)
        assert "DHE" in older[0]["name"]
        newer = [suite["name"] for suite in suites if suite["protocol"] == "TLSv1.3"]
        # The fastest first, where that can be told.
        assert "TLS_AES_128_GCM_SHA256" in newer[: 1 if sys.version_info < (3, 13) else 3]


def test_a_server_reads_the_file_for_every_client(store: Store, tmp_path: Path) -> None:
    folder = keys(tmp_path / "server", f"fred:{KEY}")
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server")
    context = server.context()
    server.context = lambda: context
    client = store.make("tls-creds-psk", "c", dir=keys(tmp_path / "client", f"qemu:{KEY}"))
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)
    keys(tmp_path / "server", f"fred:{KEY}", f"qemu:{KEY}")
    shake_hands(server, client)
    (tmp_path / "server" / "keys.psk").unlink()
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"qemu:{KEY}", True),
        (f"\n\nqemux:00\nqem:00\njunk\n#qemu:00\n#:00\nqemu:{KEY.upper()}\nqemu:00", True),
        (f"#{b'qemu'.hex()}:{KEY}", True),
        *((f"qemu:{KEY}{rest}", False) for rest in ("\r", " ", "\t", "0", "xx", ":x")),
        *((f"{before}:{KEY}", False) for before in ("qemu ", " qemu", "QEMU", "#qemu", "qemu:00", "qemu:xx\nqemu")),
        ("qemu:", False),
        ("qemu", False),
        ("", False),
    ],
)
def test_what_a_server_makes_of_a_line(store: Store, tmp_path: Path, line: str, found: bool) -> None:
    """As GnuTLS below QEMU (seen with qemu-nbd 7.2)."""
    server = store.make("tls-creds-psk", "s", dir=keys(tmp_path, line), endpoint="server")
    assert (server.find_key("qemu") == bytes.fromhex(KEY)) is found


def test_keys_as_long_as_can_be(store: Store, tmp_path: Path) -> None:
    folder = keys(tmp_path, f"qemu:{'ab' * psk.KEY_MAX}", f"fred:{'ab' * psk.KEY_MAX}ab")
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server")
    assert shake_hands(server, store.make("tls-creds-psk", "c", dir=folder)) == "TLSv1.3"
    with pytest.raises(GenericError, match="the key is longer than 512 bytes"):
        store.make("tls-creds-psk", "d", dir=folder, username="fred").context()


def test_nothing_is_left_of_a_context(store: Store, tmp_path: Path) -> None:
    folder = keys(tmp_path, f"qemu:{KEY}")
    server = store.make("tls-creds-psk", "s", dir=folder, endpoint="server")
    client = store.make("tls-creds-psk", "c", dir=folder)
    shake_hands(server, client)
    left = [weakref.ref(server.context()), weakref.ref(client.context())]
    gc.collect()
    assert [ref() for ref in left] == [None, None]


# -- Python before 3.13 ----------------------------------------------------------------------------------------------

older_python = pytest.mark.skipif(sys.version_info >= (3, 13), reason="the ssl module can do it by itself")


@older_python
@pytest.mark.parametrize(
    ("name", "version"), [("pypy", (3, 11)), ("cpython", (3, 7)), ("cpython", (3, 12))], ids=["pypy", "3.7", "odd"]
)
def test_a_python_of_unknown_insides_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(psk, "sys", SimpleNamespace(implementation=SimpleNamespace(name=name), version_info=version))
    monkeypatch.setattr(psk._Library, "address", lambda self, context: None)
    folder = keys(tmp_path, f"qemu:{KEY}")
    for side in ("server", "client"):
        found = store.make("tls-creds-psk", side, dir=folder, endpoint=side)
        with pytest.raises(GenericError, match="TLS with pre-shared keys is not possible with this Python"):
            found.context()


@older_python
def test_the_pointer_has_to_answer_as_the_context_does(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    library = psk._Library()
    assert library.address(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    assert library.address(context)
    for function, answer in (("_options", 0), ("_control", 0), ("_control", 771)):
        with monkeypatch.context() as patch:
            patch.setattr(library, function, lambda *_, answer=answer: answer)
            assert library.address(context) is None
    library._has_room = False
    assert library.address(context) is None


@older_python
def test_a_library_without_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import _ssl

    monkeypatch.setattr(psk, "_library", psk._Library)
    for file in (__file__, "/nope"):
        monkeypatch.setattr(_ssl, "__file__", file)
        with pytest.raises(GenericError, match=r"3\.13 or newer is needed"):
            psk.serve(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), lambda name: None)
