"""Addresses of QMP servers."""

import pytest

from blockmon.backend.address import Address, AddressError, SshAddress, TcpAddress, UnixAddress, parse_address
from blockmon.backend.ssh import ssh_command


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/q.sock", UnixAddress("/run/q.sock")),
        ("unix:q:1", UnixAddress("q:1")),
        ("tcp:host:4444", TcpAddress("host", 4444)),
        ("tcp::4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:4444", TcpAddress("::1", 4444)),
        ("ssh://host/run/q.sock", SshAddress("host", "/run/q.sock")),
        ("ssh://me@host:2222/run/q.sock", SshAddress("host", "/run/q.sock", "me", 2222)),
        ("ssh://me@[fe80::1%25eth0]/q", SshAddress("fe80::1%25eth0", "/q", "me")),
        ("ssh://host/a%20b", SshAddress("host", "/a b")),
    ],
)
def test_forms(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/run/q.sock", "expected unix:PATH"),
        ("http://host/", "expected unix:PATH"),
        ("unix:", "path of the socket is missing"),
        ("tcp:host", "port is missing"),
        ("tcp:host:0", "'0' is no port number"),
        ("tcp:host:http", "'http' is no port number"),
        ("tcp:::1:4444", "in brackets"),
        ("tcp:[::1:4444", "no \\[IPV6-ADDRESS\\]:PORT"),
        ("ssh://host", "path of the socket is missing"),
        ("ssh://host/", "path of the socket is missing"),
        ("ssh:///run/q", "host is missing"),
        ("ssh://@host/q", "host is missing"),
        ("ssh://-oProxyCommand=x/q", "begin with '-'"),
        ("ssh://-l@host/q", "begin with '-'"),
        ("ssh://host/a%00b", "cannot contain NUL"),
    ],
)
def test_what_is_no_address(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        parse_address(text)


def test_ssh_gets_a_path_that_it_does_not_take_apart() -> None:
    command = ssh_command(SshAddress("host", "/run/a:b\\c", "me", 22), "/tmp/x:y/q")
    assert command[-4:] == ["-L", "/tmp/x\\:y/q:/run/a\\:b\\\\c", "--", "host"]
    assert command[command.index("-l") + 1] == "me"
    assert command[command.index("-p") + 1] == "22"
    assert "BatchMode=yes" in command
