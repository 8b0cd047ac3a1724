"""Which answers of human-monitor-command tell a failure. The texts are QEMU 7.2's."""

import pytest

from blockmon.lang import hmp


@pytest.mark.parametrize(
    ("line", "answer", "failure"),
    [
        ("block_stream x", "Error: Cannot find device='x'\r\n", "Cannot find device='x'"),
        ("foo", "unknown command: 'foo'\r\n", "unknown command: 'foo'"),
        (
            "block_resize",
            'block_resize: block device name expected\r\nTry "help block_resize" for more information\r\n',
            "block_resize: block device name expected",
        ),
        ("commit x", "Device 'x' not found\r\n", "Device 'x' not found"),
        ("qemu-io n read", "Pattern verification failed at offset 0, 512 bytes\n", ...),
        ("qemu-io n write", "write failed: Operation not permitted\n", ...),
        ("qemu-io n foo", 'command "foo" not found\n', ...),
        ("qemu-io n write", "Permission conflict on node 'n': permissions 'write' are both required by …", ...),
        ("qemu-io n write", "Block node is read-only\n", ...),
        ("qemu-io n read", "read 512/512 bytes at offset 0\n512 bytes, 1 ops; 00.00 sec\n", None),
        ("info block", "", None),
        ("info block", "n0: null-co:// (null-co)\r\n    Error: no line of its own\r\n", None),
        ("info jobs", "read failed: only qemu-io says so\n", None),
    ],
)
def test_failure(line: str, answer: str, failure: object) -> None:
    assert hmp.failure(line, answer) == (answer.strip() if failure is ... else failure)
