"""Introspection: the commands and events of qemu-storage-daemon 7.2 are ours too, equal down to the leaves."""

from __future__ import annotations

import re

from engine.engine import Engine
from tests.engine.qapi.schema_compare import daemon_schema, differences

CHARACTER_DEVICES = {
    "chardev-add",
    "chardev-change",
    "chardev-remove",
    "chardev-send-break",
    "ringbuf-read",
    "ringbuf-write",
    "VSERPORT_CHANGE",
}
"""Not of the block layer, and made on the command line here."""
NO_DRIVER = [
    "blkreplay",
    "ftp",
    "ftps",
    "gluster",
    "http",
    "https",
    "iscsi",
    "luks",
    "nfs",
    "nvme",
    "rbd",
    "replication",
    "ssh",
    "vvfat",
]
"""Formats and remote storage that there is no driver for."""
NO_OBJECT = [
    "can-bus",
    "can-host-socketcan",
    "colo-compare",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "cryptodev-backend-lkcf",
    "cryptodev-vhost-user",
    "dbus-vmstate",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "filter-replay",
    "filter-rewriter",
    "input-barrier",
    "input-linux",
    "main-loop",
    "memory-backend-epc",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "pef-guest",
    "pr-manager-helper",
    "qtest",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "s390-pv-guest",
    "sev-guest",
    "thread-context",
    "tls-cipher-suites",
    "x-remote-object",
    "x-vfio-user-server",
]
"""Objects that have nothing to do with a block graph, or nothing to do in ours."""
MAY_LACK = {
    "object-add": NO_OBJECT,
    "object-add.qom-type": NO_OBJECT,
    "blockdev-add": NO_DRIVER,
    "blockdev-add.driver": NO_DRIVER,
    "blockdev-create.options": NO_DRIVER,
    "x-blockdev-amend.options": NO_DRIVER,
    "x-blockdev-amend.options.driver": NO_DRIVER,
    "query-blockstats->[].driver-specific": NO_DRIVER,
    "query-named-block-nodes->[].image.format-specific": ["luks", "rbd"],
    "query-named-block-nodes->[].image.format-specific.type": ["luks", "rbd"],
    "query-named-block-nodes->[].image.format-specific.qcow2.data": ["encrypt"],
}


def test_same_schema(qsd: str) -> None:
    engine = Engine()
    try:
        ours = engine.execute("query-qmp-schema")
    finally:
        engine.close()
    real = daemon_schema()
    known = {info["name"] for info in real if info["meta-type"] in ("command", "event")}
    have = {info["name"] for info in ours if info["meta-type"] in ("command", "event")}
    assert known - have == CHARACTER_DEVICES
    wrong = []
    for name, lines in differences(ours, real).items():
        if name in known & have:
            wrong += [line for line in lines if not _expected(line)]
    assert wrong == []


def _expected(line: str) -> bool:
    match = re.fullmatch(r"(?P<where>.+): lacks (?P<what>[a-z0-9_-]+(?:, [a-z0-9_-]+)*)", line)
    return match is not None and set(match["what"].split(", ")) <= set(MAY_LACK.get(match["where"], ()))
