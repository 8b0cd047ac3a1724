"""TLS credentials do their work: connections are made, and refused. (What is refused as a file: tests/interop.)"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.objects.tls import TLSCreds, versions
from tests.engine.objects.certificates import PASSWORD, write_folders
from tests.engine.objects.conftest import Store


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tls")
    write_folders(root)
    return root


def shake_hands(server: TLSCreds, client: TLSCreds) -> str | None:
    """Connect the two in memory, pass a word each way, and tell the version. Errors: ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.context().wrap_bio(to_server, to_client, server_side=True),
        client.context().wrap_bio(to_client, to_server),
    ]
    done = [False, False]
    for _ in range(10):
        for index, side in enumerate(sides):
            if not done[index]:
                try:
                    side.do_handshake()
                    done[index] = True
                except ssl.SSLWantReadError:
                    pass
    assert all(done)
    sides[1].write(b"hello")
    assert sides[0].read(5) == b"hello"
    sides[0].write(b"there")
    assert sides[1].read(5) == b"there"
    return sides[0].version()


def test_certificates(store: Store, folders: Path) -> None:
    store.make("secret", "pw", data=PASSWORD)
    server = store.make("tls-creds-x509", "s", dir=f"{folders}/locked-key", endpoint="server", passwordid="pw")
    client = store.make("tls-creds-x509", "c", dir=f"{folders}/good", endpoint="client")
    assert shake_hands(server, client) == "TLSv1.3"


def test_a_client_without_a_certificate(store: Store, folders: Path) -> None:
    server = store.make("tls-creds-x509", "s", dir=f"{folders}/good", endpoint="server")
    lax = store.make("tls-creds-x509", "l", dir=f"{folders}/good", endpoint="server", verify_peer=False)
    client = store.make("tls-creds-x509", "c", dir=f"{folders}/ca-only", endpoint="client")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(server, client)
    shake_hands(lax, client)


def test_a_server_of_another_ca(store: Store, folders: Path) -> None:
    server = store.make("tls-creds-x509", "s", dir=f"{folders}/good", endpoint="server", verify_peer=False)
    client = store.make("tls-creds-x509", "c", dir=f"{folders}/other-ca", sanity_check=False)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server, client)


def test_nobody_is_known(store: Store) -> None:
    server = store.make("tls-creds-anon", "s", endpoint="server")
    client = store.make("tls-creds-anon", "c", endpoint="client")
    assert shake_hands(server, client) == "TLSv1.2"


def test_versions_can_be_left_out(store: Store, folders: Path) -> None:
    server = store.make("tls-creds-x509", "s", dir=f"{folders}/good", endpoint="server", priority="NORMAL:-VERS-TLS1.3")
    client = store.make("tls-creds-x509", "c", dir=f"{folders}/good")
    assert shake_hands(server, client) == "TLSv1.2"
    newest = ssl.TLSVersion.TLSv1_3
    assert versions("NORMAL:-VERS-ALL:+VERS-TLS1.3") == (newest, newest)
    assert versions("NORMAL:-VERS-TLS-ALL:+VERS-TLS1.3") == (newest, newest)
    assert versions("NORMAL:+VERS-TLS1.1") == (ssl.TLSVersion.TLSv1_1, newest)


@pytest.mark.parametrize("priority", ["bogus!", "SECURE256", "NORMAL:-ARCFOUR-128", "NORMAL:-VERS-ALL"])
def test_priorities_that_can_not_be_followed(store: Store, priority: str) -> None:
    bogus = store.make("tls-creds-anon", "a", priority=priority)
    with pytest.raises(GenericError, match=f"Unable to set TLS session priority {priority}"):
        bogus.context()
