"""What completion offers for jobs, bitmaps, snapshots, drives, sizes …: those that the command can take, each with a
few words about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from blockmon.model.format import size_short
from blockmon.model.jobs import VERBS
from blockmon.repl.live import Bitmap, Drive, LiveNames
from blockmon.repl.meaning import Meaning, Names
from blockmon.repl.summaries import MODELS, OBJECTS


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion. `text` is the name itself, or with `literal` exactly what to insert."""

    text: str
    meta: str = ""
    shown: str = ""
    literal: bool = False
    required: bool = False
    last: bool = False
    """Offered behind the others that match as well."""
    goes_on: bool = False
    """More is typed behind it, such as a file behind its directory: no quote is closed yet."""


Add = Callable[[Candidate], None]


def add_simple(names: LiveNames, meaning: Meaning, add: Add) -> None:
    """Add what needs nothing but *names* to be told."""
    match meaning.names:
        case Names.JOB:
            _add_jobs(names, meaning, add)
        case Names.EXPORT:
            for name, meta in names.exports.items():
                if meta.startswith(meaning.of):
                    add(Candidate(name, meta))
        case Names.OBJECT:
            for name, meta in names.objects.items():
                if meta.startswith(meaning.of):
                    add(Candidate(name, f"{meta} · {OBJECTS[meta]}" if meta in OBJECTS else meta))
        case Names.DRIVE | Names.QDEV:
            for drive in names.drives:
                name = drive.name if meaning.names is Names.DRIVE else drive.qdev
                if name and drive_takes(drive, meaning.verb):
                    add(Candidate(name, drive_text(drive)))
        case Names.PERIPHERAL:
            _add_peripherals(names, add)
        case Names.CHARDEV:
            names.want("chardevs")
            for name, meta in names.chardevs.items():
                add(Candidate(name, meta))
        case Names.PATH:
            _add_paths(names, add)
        case Names.MODEL:
            names.want("types")
            for name in dict.fromkeys((*MODELS, *names.types)):
                if name in names.types or not names.types:
                    add(Candidate(name, MODELS.get(name, ""), last=name not in MODELS))
        case _:
            pass


# Jobs and drives -----------------------------------------------------------------------------------------------------


def _add_jobs(names: LiveNames, meaning: Meaning, add: Add) -> None:
    for job in names.jobs.values():
        if job_takes(job.status, meaning.verb) and (job.block_job or not meaning.block_jobs_only):
            add(Candidate(job.id, f"{job.type} {job.status}".strip()))


def job_takes(status: str, verb: str) -> bool:
    """Whether a job in *status* accepts *verb*. To pause a paused job, or to resume a running one, is refused."""
    held = status in ("paused", "standby")
    return verb in VERBS.get(status, ()) and not (verb == "pause" and held) and not (verb == "resume" and not held)


def drive_takes(drive: Drive, verb: str) -> bool:
    """Whether a drive is such that the medium command *verb* can succeed, as far as query-block tells."""
    tray = drive.tray_open
    match verb:
        case "":
            return True
        case "tray":
            return tray is not None
        case "open" | "close":
            return drive.removable and tray is (verb == "close")
        case "remove":
            return drive.removable and tray is not False and bool(drive.node)
        case "insert":
            return drive.removable and tray is not False and not drive.node
        case _:
            return drive.removable


def drive_text(drive: Drive) -> str:
    """A drive in a few words: what is in it, and how its tray is."""
    parts = [drive.about]
    if drive.tray_open is not None:
        parts.append("tray open" if drive.tray_open else "tray closed")
    if drive.locked:
        parts.append("locked")
    return ", ".join(filter(None, parts))


def _add_peripherals(names: LiveNames, add: Add) -> None:
    names.want("peripherals")
    media = {drive.qdev: drive_text(drive) for drive in names.drives if drive.qdev}
    for name, kind in names.peripherals.items():
        add(Candidate(name, f"{kind} {media.pop(name, '')}".strip()))
    for name, meta in media.items():
        if not name.startswith("/"):
            add(Candidate(name, meta))


def _add_paths(names: LiveNames, add: Add) -> None:
    names.want("peripherals")
    for name, kind in names.objects.items():
        add(Candidate(f"/objects/{name}", kind))
    for name, kind in names.peripherals.items():
        add(Candidate(f"/machine/peripheral/{name}", kind))
    for name in ("/objects", "/machine/peripheral", "/machine"):
        add(Candidate(name, "container", last=True))


# What is in images ---------------------------------------------------------------------------------------------------


def bitmap_takes(bitmap: Bitmap, verb: str) -> bool:
    """Whether the block-dirty-bitmap command *verb* can be of use on *bitmap*; "" stands for reading it."""
    if bitmap.busy:
        return False
    if bitmap.inconsistent:
        return verb == "remove"
    return not (verb == "enable" and bitmap.recording) and not (verb == "disable" and not bitmap.recording)


def add_bitmaps(names: LiveNames, verb: str, nodes: Sequence[str] | None, add: Add) -> None:
    """Add the bitmaps on *nodes*, or on all when that is None, that *verb* can be used on."""
    known = names.bitmaps_of(nodes or ())
    for bitmap in known:
        if bitmap_takes(bitmap, verb):
            add(Candidate(bitmap.name, _bitmap_text(bitmap)))


def _bitmap_text(bitmap: Bitmap) -> str:
    parts = [f"on {bitmap.node}"]
    if bitmap.granularity:
        parts.append(f"{size_short(bitmap.count)} dirty, by {size_short(bitmap.granularity)}")
    if bitmap.persistent:
        parts.append("persistent")
    if bitmap.inconsistent:
        parts.append("inconsistent")
    elif not bitmap.recording:
        parts.append("disabled")
    return ", ".join(parts)


def add_snapshots(names: LiveNames, node: str, of: str, add: Add) -> None:
    """Add the internal snapshots of *node*, of all nodes when it is empty. *of* is ``id`` where their ids are wanted,
    ``vm`` where only those will do that hold the state of a machine."""
    offered: set[str] = set()
    for snapshot in names.snapshots_of(node):
        name, other = (snapshot.id, snapshot.name) if of == "id" else (snapshot.name, f"id {snapshot.id}")
        if not name or name in offered or (of == "vm" and not snapshot.vm_state):
            continue
        offered.add(name)
        parts = [other, f"on {snapshot.node}"]
        if snapshot.seconds:
            parts.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(snapshot.seconds)))
        if snapshot.vm_state:
            parts.append(f"VM {size_short(snapshot.vm_state)}")
        add(Candidate(name, " ".join(parts)))


# Sizes ---------------------------------------------------------------------------------------------------------------

_UNITS = "KMGT"
_USUAL_SIZES = {
    "cluster-size": ("64K", "128K", "1M", "2M"),
    "granularity": ("64K", "128K", "1M"),
    "speed": ("1M", "10M", "100M"),
    "size": ("64M", "1G", "10G"),
    "buf-size": ("1M", "4M", "16M"),
    "offset": ("64K", "1M"),
}


def sizes(typed: str, member: str, *, json: bool, unit: str = "") -> Iterator[Candidate]:
    """Sizes that begin with the digits *typed*, in every unit; common ones for *member* when nothing is typed.

    JSON knows no units, so there the bytes are inserted. *unit* is the one that a bare number has (HMP's M).
    """
    if not typed:
        texts: Sequence[str] = _USUAL_SIZES.get(member, ())
    elif typed.isascii() and typed.isdecimal() and len(typed) <= 6 and int(typed):
        texts = [typed + letter for letter in _UNITS]
    else:
        return
    for text in texts:
        size = int(text[:-1]) << 10 * (_UNITS.index(text[-1]) + 1)
        if size < 1 << 63:
            shown = f"{size:,} bytes"
            if text[-1] == unit:
                shown += f", as without the {unit}"
            yield Candidate(str(size), shown, shown=text, literal=True) if json else Candidate(text, shown)
