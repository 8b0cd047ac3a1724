"""HMP as a person at a terminal has it: banner, prompt, echo, editing, recall, completion."""

import socket
import threading

import pytest

from engine.monitor.hmp.readline import HISTORY_LIMIT, Readline
from tests.engine.monitor.wire import Server

BANNER = b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "


class Typed:
    """A line editor and what it sent to the terminal."""

    def __init__(self, *candidates: str) -> None:
        self.output = ""
        self.readline = Readline("> ", self._write, lambda text: (text.split(" ")[-1], self._find(text, candidates)))

    def _write(self, text: str) -> None:
        self.output += text

    @staticmethod
    def _find(text: str, candidates: tuple[str, ...]) -> list[str]:
        return [word for word in candidates if word.startswith(text.split(" ")[-1])]

    def type(self, data: bytes) -> str | None:
        """Type *data*; return the line when it is complete. Nothing may stand behind it."""
        line, rest = self.readline.feed(data)
        assert rest == b""
        return line

    def text(self) -> str:
        line = self.type(b"\n")
        assert line is not None
        self.readline.show_prompt()
        return line


def test_echo_redraws_the_line() -> None:
    typed = Typed()
    typed.readline.show_prompt()
    assert typed.type(b"ab\n") == "ab"
    assert typed.output == "> a\x1b[K\x1b[Dab\x1b[K\r\n"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"abc\x7f\x08d", "ad"),
        (b"bc\x01a\x05d", "abcd"),
        (b"abc\x1b[D\x1b[D\x04", "ac"),
        (b"abc\x1b[1~\x1b[3~\x1b[4~d", "bcd"),
        (b"abc\x1b[Hx\x1b[Fy", "xabcy"),
        (b"ab cd  \x17e", "ab e"),
        (b"ab cd\x15x", "x"),
        (b"abcd\x1b[D\x1b[D\x0b", "ab"),
        (b"ac\x02b\x06d", "abcd"),
        (b"a\x1b[5~b\x1b[Zc", "abc"),
        (b"\x00\x03a\x07", "a"),
        ("aäb\x7f\x7fc".encode(), "ac"),
        ("\U0001f600ě".encode(), "\U0001f600ě"),
        (b"\xff\xfea", "\ufffd\ufffda"),
        pytest.param(b"x" * 5000, "x" * 4095, id="too long"),
    ],
)
def test_editing(keys: bytes, line: str) -> None:
    typed = Typed()
    typed.type(keys)
    assert typed.text() == line


def test_characters_may_come_in_pieces() -> None:
    typed = Typed()
    for byte in "ä\x1b[Dö".encode():
        typed.type(bytes([byte]))
    assert typed.text() == "öä"


def test_what_is_behind_the_line_is_given_back() -> None:
    assert Typed().readline.feed(b"one\ntwo\n") == ("one", b"two\n")


def test_recall() -> None:
    typed = Typed()
    for line in (b"one", b"two", b"one", b""):
        typed.type(line)
        typed.text()
    up, down = b"\x1b[A", b"\x1b[B"
    for keys, line in (
        (up, "one"),
        (up + up, "two"),  # a line is kept once, at its latest place
        (up + up + up, "one"),
        (up + up + down, "one"),
        (up + down, ""),
        (down, ""),
    ):
        typed.type(keys)
        typed.type(b"\x15" if line == "" else b"")
        assert typed.text() == line
    for number in range(HISTORY_LIMIT + 5):
        typed.type(b"%d" % number)
        typed.text()
    assert len(typed.readline.history) == HISTORY_LIMIT


def test_completion_of_one() -> None:
    typed = Typed("length")
    typed.type(b"qemu-io le\tx")
    assert typed.text() == "qemu-io length x"


def test_completion_of_several_lists_them() -> None:
    typed = Typed("block", "block-jobs", "blockstats")
    typed.readline.show_prompt()
    typed.output = ""
    typed.type(b"bl\t")
    assert typed.output == "b\x1b[K\x1b[Dbl\x1b[K\r\nblock       block-jobs  blockstats  \r\n> block\x1b[K"
    assert typed.text() == "block"


def test_a_directory_gets_no_space() -> None:
    typed = Typed("/img/")
    typed.type(b"/im\tx")
    assert typed.text() == "/img/x"


# -- over a connection --------------------------------------------------------------------------------------------


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


def test_session(server: Server) -> None:
    client = server.hmp()
    assert read_until(client.sock, b"(qemu) ") == BANNER
    client.send(b"info version\n")
    assert read_until(client.sock, b"(qemu) ").endswith(b"info version\x1b[K\r\n7.2.22blockmon\r\n(qemu) ")
    client.send(b"nope\ncommit\n")
    assert b"unknown command: 'nope'\r\n(qemu) " in read_until(client.sock, b"for more information\r\n(qemu) ")


def test_input_typed_ahead_waits_for_the_command(server: Server) -> None:
    server.engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 65536})
    client = server.hmp()
    client.send(b'qemu-io n "sleep 50"\nqemu-io n length\n')
    text = read_until(client.sock, b"64 KiB\r\n(qemu) ").decode()
    # The second line is echoed behind the prompt that follows the first command.
    assert '"sleep 50"\x1b[K\r\n(qemu) q\x1b[K' in text


def test_history_is_the_connection_s_own(server: Server) -> None:
    first, second = server.hmp(), server.hmp()
    first.send(b"info version\ninfo history\n")
    assert b"0: 'info version'\r\n1: 'info history'\r\n" in read_until(first.sock, b"history'\r\n(qemu) ")
    second.send(b"info history\n")
    assert b"0: 'info history'\r\n" in read_until(second.sock, b"history'\r\n(qemu) ")


def test_quit_asks_no_more(server: Server) -> None:
    told = threading.Event()
    server.engine.on_quit = told.set
    client = server.hmp()
    client.send(b"q\ninfo version\n")
    client.sock.shutdown(socket.SHUT_WR)
    rest = b""
    while data := client.sock.recv(65536):
        rest += data
    assert rest == BANNER + b"q\x1b[K\r\n"
    assert told.is_set()
