"""Names as authorisation rules for QEMU have them. What is expected here is what GnuTLS 3.7 made of the same names."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine.objects.distinguished_name import distinguished_name


def certificate(*rdns: list[tuple[str, str]]) -> bytes:
    """A certificate (DER) whose owner is named so."""
    attributes = [[x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in rdn] for rdn in rdns]
    name = x509.Name([x509.RelativeDistinguishedName(rdn) for rdn in attributes])
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("rdns", "expected"),
    [
        ([], ""),
        (
            [[("2.5.4.6", "GB")], [("2.5.4.8", "London")], [("2.5.4.10", "Example Home")], [("2.5.4.3", "a.example")]],
            "C=GB,ST=London,O=Example Home,CN=a.example",
        ),
        ([[("2.5.4.10", "o")], [("2.5.4.3", "cn"), ("0.9.2342.19200300.100.1.1", "me")]], "O=o,CN=cn+UID=me"),
        (
            [[("2.5.4.10", 'a,b+c"d\\e<f>g;h=i')], [("2.5.4.3", " lead#ing ")]],
            'O=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h=i,CN=\\ lead#ing\\ ',
        ),
        ([[("2.5.4.3", "#x")]], "CN=\\#x"),
        ([[("2.5.4.3", "Jürgen 日本")]], "CN=Jürgen 日本"),
        (
            [[("0.9.2342.19200300.100.1.25", "com")], [("1.2.840.113549.1.9.1", "a@b.c")], [("2.5.4.9", "st")]],
            "DC=com,EMAIL=a@b.c,street=st",
        ),
        ([[("1.3.6.1.4.1.311.60.2.1.3", "GB")]], "jurisdictionOfIncorporationCountryName=GB"),
        ([[("1.2.3.4", "x")], [("2.5.4.3", "cn")]], "1.2.3.4=#0c0178,CN=cn"),
        ([[("1.2.3.4.99999", "x" * 300)]], f"1.2.3.4.99999=#0c82012c{'78' * 300}"),
    ],
)
def test_names(rdns: list[list[tuple[str, str]]], expected: str) -> None:
    assert distinguished_name(certificate(*rdns)) == expected


def test_no_certificate() -> None:
    with pytest.raises(ValueError, match="parsing"):
        distinguished_name(b"junk")
