#!/usr/bin/env python3
"""All figures in one table, beside qemu-storage-daemon and cp in the same run: medians of alternating measurements.

    scripts/bench/table.py [--quick] [--markdown] [--only SECTION ...] [--folder DIR]

A ratio above 1 means that ours is better. --quick takes about three minutes; the whole some twenty. The first line
names the machine. Run it with the project's Python: .venv/bin/python scripts/bench/table.py
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import commands
import completion
import filters
import jobs
import latency
import memory
import nbd
import nodes
import quorum
import remote
import replay
import startup
from _sides import Row, machine, markdown, need, shown, summary

Section = Callable[[bool], Iterable[Row]]


def node_counts(quick: bool) -> Iterable[Row]:
    """Times for more and more nodes."""
    for count in (10, 100, 1000) if quick else (10, 100, 1000, 10_000):
        yield from nodes.rows(count, 10 if quick else 120)


def exports(quick: bool) -> Iterable[Row]:
    """The servers, not the disk: with small writes its writeback is all that one sees."""
    return nbd.rows(0.25 if quick else 2, 3 if quick else 5, folder="/dev/shm" if Path("/dev/shm").is_dir() else None)


def copies(quick: bool, *, no_flush: bool) -> Iterable[Row]:
    """Jobs with the disk they write to, or without: then only what the two programs do counts."""
    return jobs.rows(256 << 20, 3 if quick else 5, tempfile.gettempdir(), no_flush=no_flush)


SECTIONS: dict[str, tuple[str, Section]] = {
    "nbd": ("NBD export, fio, images in memory", exports),
    "jobs": ("Jobs, until the data are on the disk", lambda quick: copies(quick, no_flush=False)),
    "jobs-cached": ("Jobs, all images with cache.no-flush=on", lambda quick: copies(quick, no_flush=True)),
    "remote": ("Jobs over NBD, from and to qemu-nbd", lambda quick: remote.rows(256 << 20, 3 if quick else 9)),
    "commands": ("QMP commands", lambda quick: commands.rows(0.2 if quick else 1, 3 if quick else 5)),
    "nodes": ("Many nodes", node_counts),
    "startup": ("Start", lambda quick: startup.rows(3 if quick else 9)),
    "latency": ("Screen under load", lambda quick: latency.rows(60 if quick else 300)),
    "keys": ("Completion", lambda quick: completion.rows(1000 if quick else 10_000, 100 if quick else 1000)),
    "replay": ("Command files", lambda quick: replay.rows(10_000 if quick else 100_000)),
    "quorum": ("Quorum, beside qemu-img bench", lambda quick: quorum.rows(1 if quick else 3)),
    "memory": ("Memory", lambda quick: memory.rows(250 if quick else 1000)),
    "filters": ("Depth of a filter chain", lambda quick: filters.rows(0.01 if quick else 0.1)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="all benchmarks in one table")
    parser.add_argument("--quick", action="store_true", help="about three minutes, rougher figures")
    parser.add_argument("--markdown", action="store_true", help="as tables for the README")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--folder", help="where the images are made (default: the temporary folder)")
    args = parser.parse_args()
    need("qemu-storage-daemon", "qemu-img", "qemu-io", "fio")
    if args.folder is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = args.folder
    where = machine(Path(tempfile.gettempdir()))
    print(f"{where}\n", flush=True)
    for name in args.only:
        title, measure = SECTIONS[name]
        started = time.monotonic()
        found: list[Row] = []
        if not args.markdown:
            print(f"{title:42} {'blockmon':>10} {'':6} {'peer':>10} {'':13} {'ratio':>6}")
        for row in measure(args.quick):
            found.append(row)
            if not args.markdown:
                print(f"  {shown(row)}", flush=True)
        if args.markdown:
            print(markdown(title, found), flush=True)
        else:
            print(f"  {summary(found)}  ({time.monotonic() - started:.0f} s)\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
