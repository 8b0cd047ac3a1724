"""A certificate's distinguished name as authorisation rules have it: as gnutls_x509_crt_get_dn(3) writes it for QEMU.

That is RFC 4514 but for the order, which is the certificate's (``C=GB,O=Example,CN=client``), and for more short names.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cryptography.x509 import NameAttribute, ObjectIdentifier

_OF_X520: Final = {
    3: "CN",
    4: "surName",
    5: "serialNumber",
    6: "C",
    7: "L",
    8: "ST",
    9: "street",
    10: "O",
    11: "OU",
    12: "title",
    13: "description",
    15: "businessCategory",
    17: "postalCode",
    20: "telephoneNumber",
    41: "name",
    42: "givenName",
    43: "initials",
    44: "generationQualifier",
    46: "dnQualifier",
    65: "pseudonym",
}
_JURISDICTION: Final = "jurisdictionOfIncorporation"
_NAMES: Final = {
    **{f"2.5.4.{number}": name for number, name in _OF_X520.items()},
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "EMAIL",
    "1.3.6.1.5.5.7.9.2": "placeOfBirth",
    "1.3.6.1.5.5.7.9.3": "gender",
    "1.3.6.1.5.5.7.9.4": "countryOfCitizenship",
    "1.3.6.1.5.5.7.9.5": "countryOfResidence",
    "1.3.6.1.4.1.311.60.2.1.1": f"{_JURISDICTION}LocalityName",
    "1.3.6.1.4.1.311.60.2.1.2": f"{_JURISDICTION}StateOrProvinceName",
    "1.3.6.1.4.1.311.60.2.1.3": f"{_JURISDICTION}CountryName",
    "1.2.643.100.1": "OGRN",
    "1.2.643.100.3": "SNILS",
    "1.2.643.100.5": "OGRNIP",
    "1.2.643.3.131.1.1": "INN",
}
"""GnuTLS 3.7's short names."""


def distinguished_name(certificate: bytes) -> str:
    """The name of the owner of a certificate (DER); empty when it has none. Errors: ValueError (no certificate)."""
    from cryptography.x509 import load_der_x509_certificate

    subject = load_der_x509_certificate(certificate).subject
    return ",".join("+".join(_text(attribute) for attribute in rdn) for rdn in subject.rdns)


def _text(attribute: NameAttribute[Any]) -> str:
    if attribute.oid in _names():
        return attribute.rfc4514_string(_names())
    # What is unknown is in hex, with its type.
    return f"{attribute.oid.dotted_string}=#{_value(attribute).hex()}"


@cache
def _names() -> dict[ObjectIdentifier, str]:
    from cryptography.x509 import ObjectIdentifier

    return {ObjectIdentifier(number): name for number, name in _NAMES.items()}


def _value(attribute: NameAttribute[Any]) -> bytes:
    """The DER of an attribute's value."""
    from cryptography.x509 import Name

    data = Name([attribute]).public_bytes()
    # A sequence of a set of a sequence, each of one element, of which the last has a number first.
    for _ in range(3):
        data = data[_head(data) :]
    return data[_head(data) + data[1] :]


def _head(data: bytes) -> int:
    """How long the type and the length at the begin of *data* are."""
    return 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
