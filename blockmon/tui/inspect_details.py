"""The inspector's pages that the server is asked for: options, bitmaps, I/O, image, JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blockmon.model.details import device_entry, latency, named_node, nanoseconds, node_stats
from blockmon.model.format import (
    count_short,
    percent,
    rate_short,
    safe_text,
    size_exact,
    size_long,
    size_short,
    sparkline,
)  # fmt: skip
from blockmon.model.graph import NodeInfo, ParentInfo
from blockmon.tui.inspect_text import LABEL, Pieces, View, asked, bar, json_lines, labelled, table

NAMED = "query-named-block-nodes"
STATS = "query-blockstats"
_FLAT = {"flat": True}


def node_json(view: View, node: NodeInfo) -> list[Pieces]:
    """The node as the server lists it."""
    answer = view.ask(NAMED, _FLAT, None)
    return asked(answer, NAMED, view.look) or _listed(named_node(answer.value, node.name), NAMED)


def _listed(entry: Mapping[str, Any] | None, command: str) -> list[Pieces]:
    return json_lines(entry) if entry is not None else [[(f"{command} does not list it", "dim")]]


# Options


_SOURCES = (
    ("explicit", "explicit", "given by the user"),
    ("inherited", "inherited", "from the node it was opened for"),
    ("default", "default", ""),
)


def options(view: View, node: NodeInfo) -> list[Pieces]:
    """What the node was opened with, by where it comes from."""
    command = "x-blockmon-query-node-options"
    answer = view.ask(command, {"node-name": node.name}, None)
    waiting = asked(answer, command, view.look)
    if waiting is not None:
        return waiting
    lines: list[Pieces] = []
    width = min(24, 2 + max((len(item["name"]) for item in answer.value), default=0) + 1)
    for source, title, remark in _SOURCES:
        items = [item for item in answer.value if item["source"] == source]
        if not items:
            continue
        lines += [[]] if lines else []
        lines.append([(title, "strong"), (f"  {remark}" if remark else "", "dim")])
        for item in items:
            name = f"  {safe_text(item['name'])}"
            style = "text" if source == "explicit" else "dim"
            lines.append([(f"{name:<{width}} ", "edge"), _option_value(item.get("value"), style)])
    return lines


def _option_value(value: Any, style: str) -> tuple[str, str]:
    if value is None:
        return "up to the driver", "faint"
    if isinstance(value, bool):
        return ("on" if value else "off"), style
    return safe_text(value), style


# Bitmaps


def bitmaps(view: View, node: NodeInfo) -> list[Pieces]:
    """The node's dirty bitmaps: what each has recorded, and its state."""
    answer = view.ask(NAMED, _FLAT, 2.0)
    waiting = asked(answer, NAMED, view.look)
    if waiting is not None:
        return waiting
    entry = named_node(answer.value, node.name) or {}
    found: Sequence[Mapping[str, Any]] = entry.get("dirty-bitmaps", ())
    if not found and node.bitmaps and view.has("query-block"):
        # Before QEMU 4.2 it is the device that lists them.
        answer = view.ask("query-block", None, 2.0)
        waiting = asked(answer, "query-block", view.look)
        if waiting is not None:
            return waiting
        inserted = [item for item in answer.value if (item.get("inserted") or {}).get("node-name") == node.name]
        found = [bitmap for item in inserted for bitmap in item.get("dirty-bitmaps", ())]
    lines: list[Pieces] = []
    for item in found:
        name = safe_text(item.get("name") or "(without a name, of a job)")
        share = percent(item.get("count", 0), node.size)
        lines += [[]] if lines else []
        lines.append([(name, "strong")])
        dirty = labelled("  dirty", f"{size_long(item.get('count', 0))}  ")
        if share is not None:
            dirty += [*bar(view.look, item.get("count", 0) / node.size), (f" {share} %", "strong")]
        lines.append(dirty)
        lines.append(labelled("  grain", f"{size_long(item.get('granularity', 0))} a bit"))
        lines.append(labelled("  state", *_bitmap_state(item, view)))
    if not found:
        lines.append([("No dirty bitmaps.", "dim")])
        if view.has("block-dirty-bitmap-add"):
            lines.append([(f"block-dirty-bitmap-add node={safe_text(node.name)} name=NAME makes one.", "dim")])
    return lines


def _bitmap_state(item: Mapping[str, Any], view: View) -> Pieces:
    words: Pieces = []
    # Before QEMU 4.0 there is only a status, which tells no more than these.
    recording = item.get("recording", item.get("status") == "active")
    words.append(("recording", "state.running") if recording else ("not recording", "state.paused"))
    if item.get("inconsistent"):
        words.append((f"{view.look.symbols.error} inconsistent: it can only be removed", "state.error"))
    if item.get("busy"):
        words.append((f"{view.look.symbols.busy} busy", "state.busy"))
    words.append(("persistent" if item.get("persistent") else "in memory only", "text"))
    separated: Pieces = []
    for word in words:
        separated += [(f" {view.look.symbols.dot} ", "dim"), word] if separated else [word]
    return separated


# The image


_SHOWN_APART = frozenset(
    {"filename", "format", "virtual-size", "actual-size", "cluster-size", "encrypted", "compressed", "dirty-flag",
     "backing-filename", "full-backing-filename", "backing-filename-format", "snapshots", "format-specific",
     "backing-image", "children"}
)  # fmt: skip


def image(view: View, node: NodeInfo) -> list[Pieces]:
    """What the image says of itself: sizes, what its format is made with, its snapshots."""
    answer = view.ask(NAMED, _FLAT, None)
    waiting = asked(answer, NAMED, view.look)
    if waiting is not None:
        return waiting
    entry = named_node(answer.value, node.name)
    if entry is None:
        return _listed(None, NAMED)
    info: Mapping[str, Any] = entry.get("image", {})
    lines = [
        labelled("file", (safe_text(info.get("filename", "")), "strong")),
        labelled("format", safe_text(info.get("format", ""))),
    ]
    size, used = info.get("virtual-size"), info.get("actual-size")
    if size is not None:
        lines.append(labelled("virtual", size_exact(size)))
    if used is not None:
        line = labelled("allocated", f"{size_exact(used)}")
        share = percent(used, size or 0)
        if share is not None:
            line += [("  ", "text"), *bar(view.look, used / size), (f" {share} %", "strong")]
        lines.append(line)
    if info.get("cluster-size"):
        lines.append(labelled("clusters", size_long(info["cluster-size"])))
    words = [word for word in ("encrypted", "compressed") if info.get(word)]
    if words:
        lines.append(labelled("content", ", ".join(words)))
    if info.get("dirty-flag"):
        lines.append(labelled("state", (f"{view.look.symbols.notable} not closed cleanly", "state.notable")))
    if info.get("backing-filename") is not None:
        lines.append(labelled("backing", safe_text(info["backing-filename"])))
        full = info.get("full-backing-filename")
        if full is not None and full != info["backing-filename"]:
            lines.append(labelled("", (safe_text(full), "dim")))
        if info.get("backing-filename-format"):
            lines.append(labelled("", (f"its format: {safe_text(info['backing-filename-format'])}", "dim")))
    for key, value in info.items():
        if key not in _SHOWN_APART:
            lines.append(labelled(key, safe_text(value)))
    specific = info.get("format-specific")
    if isinstance(specific, Mapping):
        lines += [[], [(f"format-specific: {safe_text(specific.get('type', ''))}", "dim")]]
        for key, value in _flattened(specific.get("data", {})):
            lines.append([(f"  {safe_text(key):<22} ", "edge"), _option_value(value, "text")])
    snapshots: Sequence[Mapping[str, Any]] = info.get("snapshots", ())
    if snapshots:
        lines += [[], *_snapshots(snapshots, view)]
    return lines


def _flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flattened(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and not isinstance(value[0], Mapping):
        yield prefix, ", ".join(str(item) for item in value)
    elif isinstance(value, list):
        if not value:
            yield prefix, "none"
        for number, item in enumerate(value):
            yield from _flattened(item, f"{prefix}.{number}")
    else:
        yield prefix, value


def _snapshots(snapshots: Sequence[Mapping[str, Any]], view: View) -> list[Pieces]:
    """Internal snapshots: id, name, when, the guest's clock, the size of the guest's memory."""
    names = min(20, max(len("snapshots"), *(len(safe_text(item.get("name", ""))) for item in snapshots)) + 4)
    columns = [("date", 18), ("VM state", 10)]
    if view.width >= names + 28 + 12:
        columns.append(("VM clock", 12))
    rows: list[tuple[Pieces, list[tuple[str, str]]]] = []
    for item in snapshots:
        clock = item.get("vm-clock-sec", 0)
        values = [
            (time.strftime("%Y-%m-%d %H:%M", time.localtime(item.get("date-sec", 0))), "text"),
            (size_short(item.get("vm-state-size", 0)), "text"),
            (f"{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}", "text"),
        ]
        name: Pieces = [(f"{safe_text(item.get('id', ''))} ", "dim"), (safe_text(item.get("name", "")), "strong")]
        rows.append((name, values[: len(columns)]))
    lines = table(columns, rows, names, view.look.symbols.ellipsis)
    lines[0][0] = (f"{'snapshots':<{names}}{lines[0][0][0][names:]}", "dim")
    return lines


# I/O


def node_io(view: View, node: NodeInfo) -> list[Pieces]:
    """What has gone through the node, and now goes; what the device on it has counted, where there is one."""
    state = view.state
    counters, rate = state.graph.counters.get(node.name), state.io.rate(node.name)
    columns = [("bytes", 10), ("requests", 10), ("now", 10), ("req/s", 7)]
    for least_wanted in (("requests", 10), ("req/s", 7)):
        if LABEL + sum(width for _, width in columns) > view.width:
            columns.remove(least_wanted)
    lines: list[Pieces] = []
    if counters is None:
        lines.append([("The server counts nothing here; QEMU counts at the devices.", "dim")])
    else:
        lines.append([(" " * LABEL + "".join(f"{title:>{width}}" for title, width in columns), "dim")])
        for label, total, ops, now, ops_now in (
            ("read", counters.rd_bytes, counters.rd_ops, rate.rd_bytes, rate.rd_ops),
            ("written", counters.wr_bytes, counters.wr_ops, rate.wr_bytes, rate.wr_ops),
        ):
            values = {
                "bytes": size_long(total),
                "requests": f"{ops:,}",
                "now": rate_short(now) or "-",
                "req/s": count_short(ops_now) if ops_now >= 0.5 else "-",
            }
            lines.append(labelled(label, "".join(f"{values[title]:>{width}}" for title, width in columns)))
        picture = sparkline(state.io.bins(node.name, 24), view.look.symbols.spark)
        lines.append([])
        lines.append(labelled("24 s", (picture, "spark")) if picture.strip() else labelled("24 s", ("still", "dim")))
    if not view.has(STATS):
        return lines
    answer = view.ask(STATS, None, 1.0)
    entry = node_stats(answer.value, node.name)
    if entry is None and answer.known and answer.error is None:
        # Without a device above, only the list of all nodes has it.
        answer = view.ask(STATS, {"query-nodes": True}, 2.0)
        entry = node_stats(answer.value, node.name)
    if entry is not None:
        lines += [[], *_counted(entry, node_stats(answer.before, node.name), view)]
    return lines


def device_io(view: View, parent: ParentInfo) -> list[Pieces]:
    """What a device has counted."""
    answer = view.ask(STATS, None, 1.0)
    waiting = asked(answer, STATS, view.look)
    if waiting is not None:
        return waiting
    entry = device_entry(answer.value, parent.id, parent.name)
    if entry is None:
        return _listed(None, STATS)
    lines: list[Pieces] = []
    name = str(entry.get("node-name", ""))
    picture = sparkline(view.state.io.bins(name, 24), view.look.symbols.spark)
    lines += _counted(entry, device_entry(answer.before, parent.id, parent.name), view)
    stats = entry.get("stats", {})
    totals = [f"{label} {size_long(stats.get(f'{kind}_bytes', 0))}" for label, kind in _BYTES]
    lines.insert(0, labelled("bytes", f" {view.look.symbols.dot} ".join(totals)))
    lines.insert(1, labelled("24 s", (picture, "spark") if picture.strip() else ("still", "dim")))
    lines.insert(2, [])
    return lines


_BYTES = (("read", "rd"), ("written", "wr"), ("unmapped", "unmap"))
_KINDS = (("read", "rd"), ("write", "wr"), ("flush", "flush"), ("unmap", "unmap"))


def _counted(entry: Mapping[str, Any], before: Mapping[str, Any] | None, view: View) -> list[Pieces]:
    """The counters of an entry of ``query-blockstats``, and latencies since the answer *before*."""
    stats: Mapping[str, Any] = entry.get("stats", {})
    earlier: Mapping[str, Any] | None = before.get("stats") if before is not None else None
    micro = "µ" if view.look.symbols.ellipsis == "…" else "u"
    lines: list[Pieces] = []
    if any(stats.get(f"{kind}_operations") or stats.get(f"failed_{kind}_operations") for _, kind in _KINDS):
        columns = [("count", 8), ("latency", 9), ("mean", 8), ("failed", 8), ("invalid", 9), ("merged", 8)]
        while columns and LABEL - 2 + sum(width for _, width in columns) > view.width:
            columns.pop()
        rows: list[tuple[Pieces, list[tuple[str, str]]]] = []
        for label, kind in _KINDS:
            now, ever = latency(stats, earlier, kind)
            failed, invalid = (stats.get(f"{what}_{kind}_operations", 0) for what in ("failed", "invalid"))
            values = {
                "count": (count_short(stats.get(f"{kind}_operations", 0)), "text"),
                "latency": (nanoseconds(now, micro), "strong"),
                "mean": (nanoseconds(ever, micro), "text"),
                "failed": (count_short(failed), "state.error" if failed else "dim"),
                "invalid": (count_short(invalid), "state.error" if invalid else "dim"),
                "merged": (count_short(stats[f"{kind}_merged"]) if f"{kind}_merged" in stats else "", "dim"),
            }
            rows.append(([(label, "dim")], [values[title] for title, _ in columns]))
        lines += table(columns, rows, LABEL - 2, view.look.symbols.ellipsis)
        lines.append([])
    if stats.get("idle_time_ns") is not None:
        # A time that stays as it is while nothing happens, so that nothing has to be drawn anew.
        last = time.localtime(time.time() - stats["idle_time_ns"] / 1e9)
        lines.append(labelled("last used", time.strftime("%Y-%m-%d %H:%M", last)))
    if stats.get("wr_highest_offset"):
        lines.append(labelled("written to", f"{size_long(stats['wr_highest_offset'])} at the highest"))
    for interval in stats.get("timed_stats", ()):
        lines += _interval(interval, micro)
    for label, kind in _KINDS:
        histogram = stats.get(f"{kind}_latency_histogram")
        if histogram is not None:
            lines += [[], *_histogram(label, histogram, view, micro)]
    specific = entry.get("driver-specific")
    if isinstance(specific, Mapping):
        lines += [[], [(f"driver-specific: {safe_text(specific.get('driver', ''))}", "dim")]]
        lines += [
            [(f"  {safe_text(key):<22} ", "edge"), (safe_text(value), "text")]
            for key, value in specific.items()
            if key != "driver"
        ]
    return lines


def _interval(interval: Mapping[str, Any], micro: str) -> list[Pieces]:
    """Latencies over one of a device's ``stats-intervals``: least, mean, most."""
    parts = []
    for label, kind in (("read", "rd"), ("write", "wr"), ("flush", "flush")):
        values = [interval.get(f"{what}_{kind}_latency_ns") for what in ("min", "avg", "max")]
        if any(values):
            parts.append(f"{label} {'/'.join(nanoseconds(value or None, micro) for value in values)}")
    depth = [f"{label} {interval[key]:.2g}" for label, key in (("reads", "avg_rd_queue_depth"),
             ("writes", "avg_wr_queue_depth")) if interval.get(key)]  # fmt: skip
    text = "  ".join(parts) or "nothing"
    if depth:
        text += f"  queued {', '.join(depth)}"
    return [labelled(f"last {interval.get('interval_length', 0)} s", text)]


def _histogram(label: str, histogram: Mapping[str, Any], view: View, micro: str) -> list[Pieces]:
    """Requests by how long they took, a bar for each bin."""
    bounds, bins = list(histogram.get("boundaries", ())), list(histogram.get("bins", ()))
    peak, total = max(bins, default=0), sum(bins)
    lines: list[Pieces] = [[(f"{label} latency, {total:,} requests", "dim")]]
    cells = max(6, min(24, view.width - 28))
    for number, count in enumerate(bins):
        low = nanoseconds(bounds[number - 1], micro) if number else "0"
        high = nanoseconds(bounds[number], micro) if number < len(bounds) else ""
        reach = f"{low:>6} - {high:<6}" if high else f"{low:>6} and up"
        line: Pieces = [(f"{reach:<16}", "text"), *bar(view.look, count / peak if peak else 0.0, cells)]
        lines.append([*line, (f" {count_short(count)}", "strong" if count else "dim")])
    return lines
