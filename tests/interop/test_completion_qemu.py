"""Completion on a real machine with drives, over its socket: what is legal there, with its own schema and monitor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from blockmon.backend.remote import RemoteBackend
from blockmon.repl.session import ReplSession
from tests.interop.remote_servers import Server
from tests.qemu import QemuImages

pytestmark = pytest.mark.interop


@pytest.fixture
async def session(qemu_system: str, images: QemuImages, tmp_path: Path) -> AsyncIterator[ReplSession]:
    image = images.create(tmp_path / "disk.qcow2", "1M")
    images.run("snapshot", "-c", "before", image)
    server = Server(
        [
            *(qemu_system, "-M", "pc", "-nodefaults", "-display", "none", "-S"),
            *("-qmp", "unix:{q},server=on,wait=off", "-qmp", "unix:{side},server=on,wait=off"),
            *("-blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={image}"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk", "-device", "ide-cd,id=cd0"),
            *("-object", "iothread,id=io0", "-chardev", "null,id=quiet"),
        ],
        tmp_path,
    )
    backend = RemoteBackend(server.address)
    await backend.start()
    session = ReplSession(backend)
    await session.start()
    await session.learned()
    yield session
    await session.close()
    await backend.close()
    server.stop()


def offers(session: ReplSession, text: str) -> dict[str, str]:
    found = session.completer.get_completions(Document(text, len(text)), CompleteEvent())
    return {c.display_text: c.display_meta_text for c in found}


async def test_what_is_legal_on_a_machine(session: ReplSession, tmp_path: Path) -> None:
    for section in ("images", "chardevs", "peripherals", "types"):
        session.knowledge.names.want(section)
    await session.knowledge.names.refresh()
    assert offers(session, "eject id=") == {"cd0": "empty, tray closed"}
    assert offers(session, "blockdev-insert-medium id=") == {}
    assert offers(session, "device_del id=") == {"cd0": "ide-cd empty, tray closed", "vd0": "virtio-blk-pci"}
    assert offers(session, "block_set_io_throttle id=/mach") == {"/machine/peripheral/vd0/virtio-backend": "qcow2 disk"}
    assert list(offers(session, "block-export-add type=nbd id=x node-name=disk iothread=")) == ["io0"]
    assert "quiet" in offers(session, "chardev-remove id=")
    assert list(offers(session, "delvm ")) == ["before"]
    assert next(iter(offers(session, "device_add driver=virtio-blk"))) == "virtio-blk-pci"
    assert list(offers(session, "qom-list path=/machine/peri")) == [
        "/machine/peripheral/cd0",
        "/machine/peripheral/vd0",
        "/machine/peripheral",
    ]
    text = f'{{"execute": "blockdev-change-medium", "arguments": {{"id": "cd0", "filename": "{tmp_path}/di'
    assert list(offers(session, text)) == ["disk.qcow2"]
    # The tray is opened, and the event tells; what can be done then is different.
    assert await session.submit("blockdev-open-tray id=cd0")
    await session.knowledge.names.refresh()
    assert offers(session, "blockdev-insert-medium id=") == {"cd0": "empty, tray open"}
    assert offers(session, "blockdev-open-tray id=") == {}
