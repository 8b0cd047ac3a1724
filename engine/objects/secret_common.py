"""What both types of secrets have: format, encryption by another secret, and the lookup for who needs a secret."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Annotated, Final

from engine.errors import GenericError
from engine.objects.base import UserObject
from engine.qapi import Enum, Feature, Struct

if TYPE_CHECKING:
    from engine.objects.store import Objects

_BLOCK: Final = 16
_KEY: Final = 32
_BASE64: Final = {
    character: value
    for value, character in enumerate(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}


class QCryptoSecretFormat(Enum):
    """How the data of a secret are given.

    raw: the secret's bytes themselves
    base64: encoded in base64
    """

    RAW = "raw"
    BASE64 = "base64"


class SecretCommonProperties(Struct):
    """Options of secrets.

    format: how the data are given (raw). keyid: the secret of 32 bytes that the data are encrypted by, with AES-256 in
    CBC mode. iv: its initialisation vector, 16 bytes in base64.
    """

    loaded: Annotated[bool | None, Feature("deprecated")] = None
    format: QCryptoSecretFormat | None = None
    keyid: str | None = None
    iv: str | None = None


class SecretCommon(UserObject, abc.ABC):
    """A secret. ``value`` is what it hides, read once when it is made."""

    ancestors = ("secret_common", "object")
    defaults = {"format": "raw"}  # noqa: RUF012
    options: SecretCommonProperties
    value: bytes

    def complete(self) -> None:
        data = self.load()
        base64 = self.options.format is QCryptoSecretFormat.BASE64
        if self.options.keyid is not None:
            data = self._decrypt(data, base64)
        elif base64:
            data = decode_base64(data)
        self.value = data

    @abc.abstractmethod
    def load(self) -> bytes:
        """The data as given. Errors: GenericError."""

    def _decrypt(self, data: bytes, base64: bool) -> bytes:
        options = self.options
        assert options.keyid is not None
        key = find_secret(self.objects, options.keyid)
        if len(key) != _KEY:
            raise GenericError(f"Key should be {_KEY} bytes in length")
        if options.iv is None:
            raise GenericError("IV is required to decrypt secret")
        iv = decode_base64(options.iv.encode())
        if len(iv) != _BLOCK:
            raise GenericError(f"IV should be {_BLOCK} bytes in length not {len(iv)}")
        if base64:
            data = decode_base64(data)
        if len(data) % _BLOCK:
            raise GenericError(f"Length {len(data)} must be a multiple of block size {_BLOCK}")
        if not data:
            return b""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        plain = decryptor.update(data) + decryptor.finalize()
        if plain[-1] > _BLOCK:
            raise GenericError(f"Incorrect number of padding bytes ({plain[-1]}) found on decrypted data")
        return plain[: len(plain) - plain[-1]]


def decode_base64(data: bytes) -> bytes:
    """Decode base64 as GLib does: line ends are left out, what is no whole group is lost. Errors: GenericError."""
    result = bytearray()
    group: list[int] = []
    padding = 0
    for byte in data:
        if byte == 0x0A:
            continue
        if byte != 0x3D and byte not in _BASE64:
            raise GenericError("Base64 data contains invalid characters")
        padding += byte == 0x3D
        group.append(_BASE64.get(byte, 0))
        if len(group) == 4:
            bits = group[0] << 18 | group[1] << 12 | group[2] << 6 | group[3]
            result += bits.to_bytes(3, "big")[: 3 - min(padding, 2)]
            group, padding = [], 0
    return bytes(result)


def find_secret(objects: Objects, id: str) -> bytes:
    """What the secret called *id* hides. Errors: GenericError."""
    found = objects.find(id)
    if found is None:
        raise GenericError(f"No secret with id '{id}'")
    if not isinstance(found, SecretCommon):
        raise GenericError(f"Object with id '{id}' is not a secret")
    return found.value


def find_secret_text(objects: Objects, id: str) -> str:
    """As find_secret(), for a password. Errors: GenericError, also when it is no UTF-8."""
    try:
        return find_secret(objects, id).decode()
    except UnicodeDecodeError:
        raise GenericError(f"Data from secret {id} is not valid UTF-8") from None
