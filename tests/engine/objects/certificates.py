"""Certificates for tests: a folder of files as tls-creds-x509 wants them, for each thing that can be wrong."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey
Extensions = list[tuple[x509.ExtensionType, bool]]

_NOW = datetime.datetime.now(datetime.UTC)
PASSWORD = "123456"


def _usage(*names: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # type: ignore[assignment]
    return x509.KeyUsage(**{name: name in names for name in every})


_IS_CA: Extensions = [(x509.BasicConstraints(True, None), True), (_usage("key_cert_sign"), True)]
_NO_CA: Extensions = [(x509.BasicConstraints(False, None), True)]
_BOTH_USES: Extensions = [(_usage("digital_signature", "key_encipherment"), True)]
_FOR_SERVER: Extensions = [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)]
_FOR_CLIENT: Extensions = [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)]
_SERVER = [*_NO_CA, *_BOTH_USES, *_FOR_SERVER]
_CLIENT = [*_NO_CA, *_BOTH_USES, *_FOR_CLIENT]


def _not_critical(extensions: Extensions) -> Extensions:
    return [(extension, False) for extension, _ in extensions]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: Key, password: bytes | None = None) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    if password is None:
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(password))


class Authority:
    """A CA with a key for each side."""

    def __init__(self, name: str = "ca") -> None:
        self.key, self.server_key, self.client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.name = name
        self.certificate = self.sign(name, self.key, _IS_CA, own=True)

    def sign(
        self, name: str, key: Key, extensions: Extensions, *, own: bool = False, days: tuple[int, int] = (-1, 365)
    ) -> x509.Certificate:
        """A certificate for *key* under *name*, valid on *days* from today."""

        def called(name: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

        builder = (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called(name if own else self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_NOW + datetime.timedelta(days=days[0]))
            .not_valid_after(_NOW + datetime.timedelta(days=days[1]))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, extensions: Extensions = _SERVER, days: tuple[int, int] = (-1, 365)) -> bytes:
        return _pem(self.sign("server", self.server_key, extensions, days=days))

    def client(self, extensions: Extensions = _CLIENT, days: tuple[int, int] = (-1, 365)) -> bytes:
        return _pem(self.sign("client", self.client_key, extensions, days=days))

    def ca(self, extensions: Extensions = _IS_CA, days: tuple[int, int] = (-1, 365)) -> bytes:
        return _pem(self.sign(self.name, self.key, extensions, own=True, days=days))

    def files(self) -> dict[str, bytes]:
        """Everything that both sides need."""
        return {
            "ca-cert.pem": _pem(self.certificate),
            "server-cert.pem": self.server(),
            "server-key.pem": _key_pem(self.server_key),
            "client-cert.pem": self.client(),
            "client-key.pem": _key_pem(self.client_key),
        }

    def revocation(self, certificate: bytes) -> bytes:
        """The list of revoked certificates with that one (PEM)."""
        number = x509.load_pem_x509_certificate(certificate).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(_NOW).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject).last_update(_NOW)
        builder = builder.next_update(_NOW + datetime.timedelta(days=9)).add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_folders(root: Path) -> None:
    """Make a folder for each case in *root*."""
    ca, other, namesake = Authority(), Authority("other"), Authority()
    files = ca.files()
    old, early = (-20, -10), (10, 20)
    junk = b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n"
    cases: dict[str, dict[str, bytes | None]] = {
        "good": {},
        "ca-only": dict.fromkeys(name for name in files if name != "ca-cert.pem"),
        "no-key": {"server-key.pem": None, "client-key.pem": None},
        "expired": {"server-cert.pem": ca.server(days=old), "client-cert.pem": ca.client(days=old)},
        "early": {"server-cert.pem": ca.server(days=early), "client-cert.pem": ca.client(days=early)},
        "ca-expired": {"ca-cert.pem": ca.ca(days=old)},
        "ca-early": {"ca-cert.pem": ca.ca(days=early)},
        "all-expired": {"ca-cert.pem": ca.ca(days=old), "server-cert.pem": ca.server(days=old)},
        "ca-is-none": {"ca-cert.pem": ca.ca(_NO_CA)},
        "ca-says-nothing": {"ca-cert.pem": ca.ca([])},
        "ca-may-not-sign": {"ca-cert.pem": ca.ca([_IS_CA[0], *_BOTH_USES])},
        "ca-should-not-sign": {"ca-cert.pem": ca.ca([_IS_CA[0], *_not_critical(_BOTH_USES)])},
        "is-ca": {"server-cert.pem": ca.server(_IS_CA), "client-cert.pem": ca.client(_IS_CA)},
        "may-not-sign": {"server-cert.pem": ca.server([*_NO_CA, (_usage("key_encipherment"), True), *_FOR_SERVER])},
        "should-not-sign": {"server-cert.pem": ca.server([*_NO_CA, (_usage("key_encipherment"), False)])},
        "sides-swapped": {"server-cert.pem": ca.server(_CLIENT), "client-cert.pem": ca.client(_SERVER)},
        "sides-advised": {"server-cert.pem": ca.server([*_NO_CA, *_not_critical(_FOR_CLIENT)])},
        "says-nothing": {"server-cert.pem": ca.server([]), "client-cert.pem": ca.client([])},
        "other-ca": {"ca-cert.pem": other.ca()},
        "namesake-ca": {"ca-cert.pem": namesake.ca()},
        "two-cas": {"ca-cert.pem": other.ca() + _pem(ca.certificate)},
        "other-key": {"server-key.pem": _key_pem(other.server_key), "client-key.pem": _key_pem(other.client_key)},
        "locked-key": {
            "server-key.pem": _key_pem(ca.server_key, PASSWORD.encode()),
            "client-key.pem": _key_pem(ca.client_key, PASSWORD.encode()),
        },
        "junk-ca": {"ca-cert.pem": b"junk\n"},
        "empty-ca": {"ca-cert.pem": b""},
        "junk-cert": {"server-cert.pem": b"junk\n", "client-cert.pem": junk},
        "junk-key": {"server-key.pem": b"junk\n"},
        "revoked": {"ca-crl.pem": ca.revocation(files["server-cert.pem"])},
        "junk-crl": {"ca-crl.pem": b"junk\n"},
        "junk-dh": {"dh-params.pem": b"junk\n"},
    }
    for case, changed in cases.items():
        folder = root / case
        folder.mkdir(parents=True)
        for name, content in {**files, **changed}.items():
            if content is not None:
                (folder / name).write_bytes(content)
