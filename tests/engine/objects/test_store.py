"""Objects by id: made, found, used, deleted."""

import pytest

from engine.errors import GenericError
from engine.objects.authz import find_authz
from engine.objects.iothread import IOThread, find_iothread
from engine.objects.secret_common import find_secret, find_secret_text
from engine.objects.tls import QCryptoTLSCredsEndpoint, find_tls_creds
from tests.engine.objects.conftest import Store


def test_a_failed_object_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(GenericError, match="must be provided"):
        store.make("secret", "s")
    store.make("secret", "s", data="x")
    assert find_secret(store, "s") == b"x"


def test_an_object_in_use_stays(store: Store) -> None:
    thread = store.make("iothread", "i")
    thread.hold("me")
    thread.hold("you")
    thread.release("me")
    with pytest.raises(GenericError, match="object 'i' is in use, can not be deleted"):
        store.delete("i")
    thread.release("you")
    store.delete("i")
    assert store.find("i") is None


def test_what_is_needed_is_found_by_its_kind(store: Store) -> None:
    store.make("secret", "s", data="x")
    creds = store.make("tls-creds-anon", "t", endpoint="server")
    rule = store.make("authz-simple", "a", identity="fred")
    thread = store.make("iothread", "i")
    assert store.get("i", IOThread) is thread is find_iothread(store, "i")
    assert store.get("s", IOThread) is None
    assert find_authz(store, "a") is rule
    server, client = QCryptoTLSCredsEndpoint.SERVER, QCryptoTLSCredsEndpoint.CLIENT
    assert find_tls_creds(store, "t", server) is creds
    for look_up, text in (
        (lambda: find_secret(store, "x"), "No secret with id 'x'"),
        (lambda: find_secret(store, "t"), "Object with id 't' is not a secret"),
        (lambda: find_iothread(store, "s"), 'iothread "s" not found'),
        (lambda: find_authz(store, "x"), "Cannot find QAuthZ object ID x"),
        (lambda: find_authz(store, "s"), "Object 's' is not a QAuthZ subclass"),
        (lambda: find_tls_creds(store, "x", server), "No TLS credentials with id 'x'"),
        (lambda: find_tls_creds(store, "s", server), "Object with id 's' is not TLS credentials"),
        (lambda: find_tls_creds(store, "t", client), "Expected TLS credentials for a client endpoint"),
    ):
        with pytest.raises(GenericError) as caught:
            look_up()
        assert caught.value.desc == text


def test_a_password_is_text(store: Store) -> None:
    store.make("secret", "good", data="ü")
    store.make("secret", "bad", data="/w==", format="base64")
    assert find_secret_text(store, "good") == "ü"
    with pytest.raises(GenericError, match="Data from secret bad is not valid UTF-8"):
        find_secret_text(store, "bad")
