"""Makes images in formats that no tool at hand writes, from the bytes that are to be read from them."""

from __future__ import annotations

import base64
import bz2
import struct
import zlib
from collections.abc import Sequence

SECTOR = 512


def bochs(content: bytes, *, extent: int = 4096, version: int = 0x20000) -> bytes:
    """A growing image; sectors of zeros are left out, and extents without any sector."""
    sectors = len(content) // SECTOR
    per = extent // SECTOR
    bitmap_size = -(-per // 8 // SECTOR) * SECTOR or SECTOR
    catalog: list[int] = []
    data = b""
    taken = 0
    for start in range(0, sectors, per):
        bitmap = bytearray(bitmap_size)
        body = bytearray(extent)
        for index in range(min(per, sectors - start)):
            sector = content[(start + index) * SECTOR : (start + index + 1) * SECTOR]
            if any(sector):
                bitmap[index // 8] |= 1 << index % 8
                body[index * SECTOR : (index + 1) * SECTOR] = sector
        if any(bitmap):
            catalog.append(taken)
            taken += 1
            data += bytes(bitmap) + bytes(body)
        else:
            catalog.append(0xFFFFFFFF)
    disk = struct.pack("<Q", len(content)) if version == 0x10000 else struct.pack("<IQ", 0, len(content))
    head = struct.pack(
        "<32s16s16s5I",
        b"Bochs Virtual HD Image",
        b"Redolog",
        b"Growing",
        version,
        512,
        len(catalog),
        bitmap_size,
        extent,
    )
    return (head + disk).ljust(512, b"\0") + struct.pack(f"<{len(catalog)}I", *catalog) + data


def cloop(content: bytes, *, block: int = 4096) -> bytes:
    """Blocks packed one by one; the content is filled up to whole blocks."""
    preamble = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    content += bytes(-len(content) % block)
    packed = [zlib.compress(content[at : at + block]) for at in range(0, len(content), block)]
    offsets = [136 + 8 * (len(packed) + 1)]
    for part in packed:
        offsets.append(offsets[-1] + len(part))
    head = preamble.ljust(128, b"\0") + struct.pack(">II", block, len(packed))
    return head + struct.pack(f">{len(offsets)}Q", *offsets) + b"".join(packed)


ZERO, RAW, IGNORE, ADC, ZLIB, BZIP2, LZFSE = 0, 1, 2, 0x80000004, 0x80000005, 0x80000006, 0x80000007
COMMENT, LAST = 0x7FFFFFFE, 0xFFFFFFFF


def dmg_table(chunks: Sequence[tuple[int, int, int, int, int]], first: int = 0, base: int = 0) -> bytes:
    """A block table of (kind, sector, sectors, offset, size)."""
    table = bytearray(204)
    table[:4] = b"mish"
    table[8:16] = first.to_bytes(8, "big")
    table[0x18:0x20] = base.to_bytes(8, "big")
    for kind, sector, sectors, offset, size in chunks:
        table += struct.pack(">I4x4Q", kind, sector, sectors, offset, size)
    return bytes(table)


def dmg_around(data: bytes, tables: Sequence[bytes], sectors: int, *, resources: bool = False) -> bytes:
    """An image with these block tables, in a property list or a resource fork, and the data before them."""
    trailer = bytearray(512)
    trailer[:4] = b"koly"
    if resources:
        body = b"".join(struct.pack(">I", len(table)) + table for table in tables)
        part = struct.pack(">4I", 16, 0, len(body), 0) + body
        at = 0x28
    else:
        text = b"".join(b"<dict><data>\n\t" + base64.encodebytes(table) + b"</data></dict>" for table in tables)
        part = b"<?xml?><plist>" + text + b"</plist>"
        at = 0xD8
    struct.pack_into(">QQ", trailer, at, len(data), len(part))
    struct.pack_into(">Q", trailer, 0x1EC, sectors)
    return data + part + bytes(trailer)


def dmg(content: bytes, kinds: Sequence[int], *, chunk: int = 8, resources: bool = False) -> bytes:
    """Chunks of *chunk* sectors, of these kinds in turn; those of zeros must be zeros in the content."""
    data = b""
    rows: list[tuple[int, int, int, int, int]] = []
    sectors = len(content) // SECTOR
    for number, start in enumerate(range(0, sectors, chunk)):
        kind = kinds[number % len(kinds)]
        count = min(chunk, sectors - start)
        plain = content[start * SECTOR : (start + count) * SECTOR]
        packed = {RAW: plain, ZLIB: zlib.compress(plain), BZIP2: bz2.compress(plain)}.get(kind, b"")
        rows.append((kind, start, count, len(data), len(packed)))
        data += packed
    rows.append((COMMENT, 0, 0, 0, 0))
    rows.append((LAST, sectors, 0, 0, 0))
    half = len(rows) // 2
    return dmg_around(data, [dmg_table(rows[:half]), b"cSum", dmg_table(rows[half:])], sectors, resources=resources)
