"""What secrets hide: raw and base64 data, files, keys of the kernel, encryption."""

import ctypes
import os
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from engine.errors import GenericError
from engine.objects.secret_common import decode_base64, find_secret
from tests.engine.objects.conftest import Store

KEY, IV = bytes(range(32)), bytes(range(16))


def encrypt(plain: bytes) -> bytes:
    padding = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
    return encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()


@pytest.mark.parametrize("plain", [b"", b"letmein", b"sixteen bytes ok", b"\0\xff" * 40])
def test_an_encrypted_secret_is_decrypted(store: Store, tmp_path: Path, plain: bytes) -> None:
    store.make("secret", "key", data=b64encode(KEY).decode(), format="base64")
    iv = b64encode(IV).decode()
    store.make("secret", "s", data=b64encode(encrypt(plain)).decode(), format="base64", keyid="key", iv=iv)
    assert find_secret(store, "s") == plain
    (tmp_path / "raw").write_bytes(encrypt(plain))
    store.make("secret", "f", file=str(tmp_path / "raw"), keyid="key", iv=iv)
    assert find_secret(store, "f") == plain


def test_a_secret_is_read_when_it_is_made(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"one\n")
    made = store.make("secret", "s", file=str(path))
    path.write_bytes(b"two\n")
    made.set_property("file", "elsewhere")
    assert find_secret(store, "s") == b"one\n"
    assert made.get_property("file") == "elsewhere"


@pytest.mark.parametrize(
    ("text", "data"),
    [(b"YWJj", b"abc"), (b"YW\nJj\n", b"abc"), (b"YWI=", b"ab"), (b"YQ==", b"a"), (b"YWJjZ", b"abc"), (b"", b"")],
)
def test_base64(text: bytes, data: bytes) -> None:
    assert decode_base64(text) == data


def test_base64_of_nothing_else() -> None:
    with pytest.raises(GenericError, match="Base64 data contains invalid characters"):
        decode_base64(b"YWJj YWJj")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the system calls are those of x86_64")
def test_a_key_of_the_kernel_is_a_secret(store: Store) -> None:
    add_key, process_keyring = 248, -2
    payload = b"open sesame"
    serial = ctypes.CDLL(None).syscall(add_key, b"user", b"blockmon", payload, ctypes.c_size_t(11), process_keyring)
    if serial < 0:
        pytest.skip("the kernel gives no key ring here")
    store.make("secret_keyring", "k", serial=serial)
    assert find_secret(store, "k") == payload
