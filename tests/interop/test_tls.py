"""TLS of the NBD server and of the nbd driver, the real one at the other end: who is let in, and what is said."""

from __future__ import annotations

import contextlib
import datetime
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from engine.engine import Engine
from engine.errors import QMPError
from tests.engine.objects.certificates import Authority, write_folders
from tests.interop.nbd_servers import Server

SIZE = 1 << 20
KEY = "00112233445566778899aabbccddeeff"
OLDER = "NORMAL:-VERS-TLS1.3"
CLOSED = re.compile(
    r"TLS handshake failed: (The TLS connection was non-properly terminated|Error in the (push|pull) function)\."
)
"""So the end of a connection in the handshake is told, and by GnuTLS when it had more to send or the other had."""
SIDES = pytest.mark.parametrize(("server", "client"), [("real", "ours"), ("ours", "real"), ("real", "real")])
Options = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of credentials: certificates, and keys, ``wrong`` ones too."""
    root = tmp_path_factory.mktemp("tls")
    write_folders(root)
    authority, listed = Authority(), Authority()
    banned = _certificate(listed, [(NameOID.COMMON_NAME, "client")])
    old = {**authority.files(), "server-cert.pem": authority.server(days=(-9, -1))}
    old["client-cert.pem"] = _certificate(authority, [(NameOID.COMMON_NAME, "client")], days=-1)
    keys = {"key": f"qemu:{KEY}\nfred:{KEY * 2}\n", "wrong": f"qemu:{KEY}00\nghost:{KEY}\n"}
    for name, files in (
        ("old", old),
        ("stranger", Authority("else").files()),
        ("banned", {**listed.files(), "client-cert.pem": banned, "ca-crl.pem": listed.revocation(banned)}),
        *((name, {"keys.psk": text.encode()}) for name, text in keys.items()),
    ):
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / file).write_bytes(content)
    return root


def _certificate(authority: Authority, name: list[tuple[x509.ObjectIdentifier, str]], days: int = 9) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(*part) for part in name]))
    builder = builder.issuer_name(authority.certificate.subject).public_key(authority.client_key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=10))
    signed = builder.not_valid_after(now + datetime.timedelta(days=days)).sign(authority.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _text(options: Options) -> str:
    """Options as on QEMU's command line."""
    words = []
    for name, value in options.items():
        match value:
            case list():
                words.append(
                    _text({f"{name}.{at}.{key}": one for at, each in enumerate(value) for key, one in each.items()})
                )
            case bool():
                words.append(f"{name}={'on' if value else 'off'}")
            case _:
                words.append(f"{'' if name == 'qom-type' else f'{name}='}{str(value).replace(',', ',,')}")
    return ",".join(words)


@contextlib.contextmanager
def serving(kind: str, folder: Path, creds: Options, authz: Options | None = None) -> Iterator[None]:
    """An NBD server of TLS with an empty disk, ours or the real one."""
    image = folder / "a.raw"
    image.write_bytes(bytes(SIZE))
    creds = {**creds, "id": "t", "endpoint": "server"}
    if kind == "real":
        rule = () if authz is None else ("--object", _text({**authz, "id": "who"}), "--tls-authz", "who")
        server = Server(
            folder / "sock",
            *("timeout", "60", "qemu-nbd", "-k", folder / "sock", "-t", "-e", "8", "-f", "raw"),
            *("--object", _text(creds), *rule, "--tls-creds", "t", image),
        )
        try:
            yield
        finally:
            server.end()
        return
    engine = Engine()
    try:
        engine.execute("object-add", creds)
        start: Options = {"addr": {"type": "unix", "data": {"path": str(folder / "sock")}}, "tls-creds": "t"}
        if authz is not None:
            engine.execute("object-add", {**authz, "id": "who"})
            start["tls-authz"] = "who"
        engine.execute("nbd-server-start", start)
        engine.execute("blockdev-add", {"driver": "file", "node-name": "a", "filename": str(image)})
        engine.execute("block-export-add", {"type": "nbd", "id": "a", "node-name": "a", "name": "", "writable": True})
        yield
    finally:
        engine.close()


def attempt(kind: str, folder: Path, creds: Options, hostname: str | None = None) -> str:
    """What a client says to the server; nothing when it has connected, written and read."""
    creds = {**creds, "id": "t", "endpoint": "client"}
    server = {"type": "unix", "path": str(folder / "sock")}
    name = {} if hostname is None else {"tls-hostname": hostname}
    if kind == "real":
        options = {
            "driver": "nbd",
            **{f"server.{key}": value for key, value in server.items()},
            "tls-creds": "t",
            **name,
        }
        command: tuple[str, ...] = ("timeout", "20", "qemu-io", "--object", _text(creds), "-c", "write -P 7 5 70000")
        command += ("-c", "read -P 7 5 70000", "--image-opts", _text(options))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            assert "verification failed" not in done.stdout
            return ""
        return re.sub(r"^qemu-io: can't open[^:]*: ", "", done.stderr.replace("\0", "").splitlines()[0])
    engine = Engine()
    try:
        engine.execute("object-add", creds)
        engine.execute("blockdev-add", {"driver": "nbd", "node-name": "n", "server": server, "tls-creds": "t", **name})
        node: Any = engine.graph.nodes["n"]
        node.write(5, memoryview(b"\7" * 70000))
        data = bytearray(70000)
        node.read(5, memoryview(data))
        assert data == b"\7" * 70000
        return ""
    except QMPError as exc:
        return exc.desc
    finally:
        engine.close()


# -- keys known beforehand -------------------------------------------------------------------------------------------


def _keys(folders: Path, folder: str = "key", **options: Any) -> Options:
    return {"qom-type": "tls-creds-psk", "dir": str(folders / folder), **options}


@pytest.mark.usefixtures("qemu_nbd")
@SIDES
@pytest.mark.parametrize("older", ["", "server", "client"])
def test_who_knows_a_key_is_let_in(server: str, client: str, older: str, tmp_path: Path, folders: Path) -> None:
    # qemu-nbd sends no alert before it closes the connection.
    refusal = CLOSED if server == "real" else re.compile(r"TLS handshake failed: A TLS fatal alert has been received\.")
    priority = {"priority": OLDER}
    # A rule asks for a certificate's name, and for keys not at all.
    rule = {"qom-type": "authz-simple", "identity": "nobody"}
    with serving(server, tmp_path, _keys(folders, **(priority if older == "server" else {})), rule):
        own = priority if older == "client" else {}
        assert attempt(client, tmp_path, _keys(folders, **own)) == ""
        assert attempt(client, tmp_path, _keys(folders, username="fred", **own)) == ""
        for name in ("qemu", "ghost"):
            assert refusal.fullmatch(attempt(client, tmp_path, _keys(folders, "wrong", username=name, **own)))
        anybody = {"qom-type": "tls-creds-x509", "dir": f"{folders}/good", "verify-peer": False, **own}
        assert refusal.fullmatch(attempt(client, tmp_path, anybody))
        assert attempt(client, tmp_path, _keys(folders, **own)) == ""


@pytest.mark.usefixtures("qemu_nbd")
@SIDES
def test_a_new_user_is_let_in_at_once(server: str, client: str, tmp_path: Path) -> None:
    (tmp_path / "keys.psk").write_text(f"qemu:{KEY}\n")
    new = tmp_path / "new"
    new.mkdir()
    (new / "keys.psk").write_text(f"#comes:00\nfred:{KEY}11\n")
    with serving(server, tmp_path, _keys(tmp_path, "")):
        assert attempt(client, tmp_path, _keys(tmp_path, "new", username="fred")) != ""
        (tmp_path / "keys.psk").write_text(f"#{b'fred'.hex()}:{KEY}11\n")
        assert attempt(client, tmp_path, _keys(tmp_path, "new", username="fred")) == ""
        (tmp_path / "keys.psk").unlink()
        assert attempt(client, tmp_path, _keys(tmp_path, "new", username="fred")) != ""


def test_libnbd_with_a_key(nbdinfo: str, tmp_path: Path, folders: Path) -> None:
    def told(scheme: str, user: str, folder: str) -> str:
        uri = f"{scheme}://{user}@/?socket={tmp_path}/sock&tls-psk-file={folders}/{folder}/keys.psk"
        done = subprocess.run([nbdinfo, "--size", uri], capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() if done.returncode == 0 else done.stderr

    for priority in ("NORMAL", OLDER):
        with serving("ours", tmp_path, _keys(folders, priority=priority)):
            assert told("nbds+unix", "qemu", "key") == told("nbds+unix", "fred", "key") == str(SIZE)
            for user in ("qemu", "ghost"):
                assert "gnutls_handshake: A TLS fatal alert has been received." in told("nbds+unix", user, "wrong")
            assert "server requires TLS encryption first" in told("nbd+unix", "qemu", "key")


@pytest.mark.usefixtures("qemu_nbd")
@pytest.mark.parametrize("client", ["ours", "real"])
def test_a_server_with_a_certificate_instead(client: str, tmp_path: Path, folders: Path) -> None:
    creds = {"qom-type": "tls-creds-x509", "dir": f"{folders}/good", "verify-peer": False}
    with serving("real", tmp_path, creds):
        assert attempt(client, tmp_path, _keys(folders)) != ""


# -- certificates ----------------------------------------------------------------------------------------------------

REFUSED = re.compile(
    r"Failed to (read option reply|send option request header): .*"
    r"|TLS handshake failed: (A TLS fatal alert has been received|Error in the (push|pull) function)\."
)
"""What a client says whose certificate the server does not like: that depends on when it comes to know."""
ISSUER = "The certificate hasn't got a known issuer"
UNTRUSTED = "The certificate is not trusted"
LAX = {"verify-peer": False}
UNCHECKED = {"sanity-check": False}


CERTIFICATES: dict[str, tuple[Options, Options, str | None, str | re.Pattern[str]]] = {
    "good": ({}, {}, "server", ""),
    "of another host": ({}, {}, "another", "Certificate does not match the hostname another"),
    "of another address": ({}, {}, "127.0.0.1", "Certificate does not match the hostname 127.0.0.1"),
    "of any host": ({}, {}, None, "No hostname for certificate validation"),
    "of any server": ({}, LAX, None, ""),
    "none": ({}, {"dir": "ca-only"}, "server", REFUSED),
    "none, nor needed": (LAX, {"dir": "ca-only"}, "server", ""),
    "unknown server": (LAX, {"dir": "other-ca", **UNCHECKED}, "server", ISSUER),
    "fake server": (LAX, {"dir": "namesake-ca", **UNCHECKED}, "server", UNTRUSTED),
    "unknown client": ({}, {"dir": "stranger", **LAX}, "server", REFUSED),
    "unknown, who cares": (LAX, {"dir": "stranger", **LAX}, "server", ""),
    "banned client": ({"dir": "banned"}, {"dir": "banned"}, "server", REFUSED),
    "another is banned": ({"dir": "revoked"}, {"dir": "revoked"}, "server", ""),
    "old server": ({"dir": "old", **UNCHECKED, **LAX}, {"dir": "old", **UNCHECKED}, "server", UNTRUSTED),
    "old client": ({"dir": "old", **UNCHECKED}, {"dir": "old", **UNCHECKED, **LAX}, None, REFUSED),
}


@pytest.mark.usefixtures("qemu_nbd")
@SIDES
@pytest.mark.parametrize("case", CERTIFICATES)
@pytest.mark.parametrize("priority", ["NORMAL", OLDER])
def test_certificates(server: str, client: str, case: str, priority: str, tmp_path: Path, folders: Path) -> None:
    def creds(options: Options) -> Options:
        folder = folders / options.get("dir", "good")
        return {"qom-type": "tls-creds-x509", **options, "dir": str(folder), "priority": priority}

    servers, clients, hostname, expected = CERTIFICATES[case]
    with serving(server, tmp_path, creds(servers)):
        told = attempt(client, tmp_path, creds(clients), hostname)
    if isinstance(expected, str):
        assert told == expected
    else:
        assert expected.fullmatch(told)


def _rule(match: str, policy: str, **format: str) -> Options:
    return {"match": match, "policy": policy, **format}


PLACE = [
    *((NameOID.COUNTRY_NAME, "GB"), (NameOID.LOCALITY_NAME, "London"), (NameOID.ORGANIZATION_NAME, "Home, Ltd")),
    *((NameOID.EMAIL_ADDRESS, "a@b.c"), (NameOID.COMMON_NAME, "laptop")),
]


RULES: dict[str, tuple[bool, list[tuple[x509.ObjectIdentifier, str]], Options]] = {
    "its name": (True, PLACE, {"identity": "C=GB,L=London,O=Home\\, Ltd,EMAIL=a@b.c,CN=laptop"}),
    "backwards": (False, PLACE, {"identity": "CN=laptop,EMAIL=a@b.c,O=Home\\, Ltd,L=London,C=GB"}),
    "pattern": (True, PLACE, {"policy": "deny", "rules": [_rule("C=GB,*,CN=laptop", "allow", format="glob")]}),
    "denied": (False, PLACE, {"policy": "allow", "rules": [_rule("*CN=lap?op", "deny", format="glob")]}),
    "no pattern": (True, PLACE, {"policy": "allow", "rules": [_rule("*CN=lap?op", "deny")]}),
    "no name": (False, [], {"policy": "allow"}),
}
"""Who is allowed, by what name, by what rules."""


@pytest.mark.usefixtures("qemu_nbd")
@SIDES
@pytest.mark.parametrize("case", RULES)
def test_rules_about_names(server: str, client: str, case: str, tmp_path: Path) -> None:
    allowed, name, rule = RULES[case]
    authority = Authority()
    files = {**authority.files(), "client-cert.pem": _certificate(authority, name)}
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    creds = {"qom-type": "tls-creds-x509", "dir": str(tmp_path), "sanity-check": False}
    what = {"qom-type": "authz-simple" if "identity" in rule else "authz-list"}
    with serving(server, tmp_path, creds, {**what, **rule}):
        told = attempt(client, tmp_path, creds, "server")
    if allowed:
        assert told == ""
    else:
        assert REFUSED.fullmatch(told)
