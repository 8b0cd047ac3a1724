"""Names of files on disk, with the image format their first bytes tell."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_ENTRIES = 2000
"""Of a larger directory only so many entries are looked at; a longer prefix finds the rest."""

MOST_PROBED = 200
"""So many files are opened for one completion; the others show their size only."""

# From the formats' specifications and QEMU's probe functions (digest §7.1).
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)
_HEAD = 0x44


@dataclass(frozen=True, slots=True)
class FileName:
    """A file or directory: the name to write, and what is known of it. `size` in bytes, None for what has none."""

    path: str
    directory: bool = False
    format: str = ""
    size: int | None = None


def probe(head: bytes) -> str:
    """The format that an image's first bytes tell; raw when none does."""
    if head[:4] == b"QFI\xfb" and len(head) >= 8:
        return "qcow" if head[4:8] == b"\0\0\0\x01" else "qcow2"
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    return "raw"


def probe_file(path: str | Path) -> str:
    """The format of the regular file *path*; empty when it cannot be read. Never waits for a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return probe(os.pread(descriptor, _HEAD, 0))
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def files_matching(typed: str, *, suffixes: Iterable[str] = ()) -> list[FileName]:
    """The files that the path *typed* can be completed to, directories first, then by name.

    Hidden ones only when their dot is typed. *suffixes* limits the files, not the directories. Reads the disk: call it
    off the event loop where that may be slow.
    """
    folder, _, prefix = typed.rpartition("/")
    shown = folder + "/" if "/" in typed else ""
    if shown.startswith("~"):
        # The shell knows ~, a block driver does not.
        shown = os.path.expanduser(shown)
    where = shown or "."
    wanted = tuple(suffixes)
    found: list[tuple[bool, str, os.DirEntry[str]]] = []
    try:
        with os.scandir(where) as entries:
            for entry in entries:
                name = entry.name
                if not name.startswith(prefix) or (name.startswith(".") and not prefix.startswith(".")):
                    continue
                try:
                    directory = entry.is_dir()
                except OSError:
                    directory = False
                if directory or not wanted or name.endswith(wanted):
                    found.append((not directory, name, entry))
                if len(found) >= MOST_ENTRIES:
                    break
    except OSError:
        return []
    found.sort(key=lambda item: item[:2])
    result = []
    for index, (_, name, entry) in enumerate(found):
        result.append(_described(shown + name, entry, probed=index < MOST_PROBED))
    return result


def _described(path: str, entry: os.DirEntry[str], *, probed: bool) -> FileName:
    try:
        status = entry.stat()
    except OSError:
        return FileName(path, format="broken link" if entry.is_symlink() else "")
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return FileName(path + "/", directory=True)
    if stat.S_ISREG(mode):
        return FileName(path, format=probe_file(entry.path) if probed else "", size=status.st_size)
    if stat.S_ISBLK(mode):
        return FileName(path, format="block device")
    return FileName(path, format="socket" if stat.S_ISSOCK(mode) else "special file")
