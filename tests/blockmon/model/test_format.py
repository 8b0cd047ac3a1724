"""Numbers and names as people read them."""

import pytest

from blockmon.model.format import (
    basename,
    count_short,
    duration_short,
    elide_middle,
    percent,
    rate_short,
    safe_text,
    size_exact,
    size_long,
    size_short,
    sparkline,
)


@pytest.mark.parametrize(
    ("size", "short", "long"),
    [
        (0, "0", "0 B"),
        (512, "512", "512 B"),
        (1024, "1K", "1 KiB"),
        (64 * 1024, "64K", "64 KiB"),
        (1288490188, "1.2G", "1.2 GiB"),
        (1000 * 1024**2, "1G", "0.98 GiB"),
        (20 * 1024**3, "20G", "20 GiB"),
        (2**63 - 1, "8E", "8 EiB"),
        (None, "-", "unknown"),
    ],
)
def test_sizes(size: int | None, short: str, long: str) -> None:
    assert size_short(size) == short
    assert size_long(size) == long


def test_no_short_size_is_wider_than_its_column() -> None:
    for exponent in range(64):
        for delta in (-1, 0, 1, 2**exponent // 3):
            assert len(size_short(max(0, 2**exponent + delta))) <= 5


def test_exact_size_has_every_byte() -> None:
    assert size_exact(1024**3) == "1 GiB (1,073,741,824 bytes)"
    assert size_exact(12) == "12 bytes"


def test_rates_and_counts() -> None:
    assert rate_short(1.1 * 1024**3) == "1.1G/s"
    assert rate_short(0.2) == ""
    assert rate_short(None) == ""
    assert count_short(950) == "950"
    assert count_short(1234) == "1.2k"


def test_hundred_per_cent_is_only_said_of_what_is_complete() -> None:
    assert percent(999, 1000) == 99
    assert percent(10**18 - 1, 10**18) == 99
    assert percent(1000, 1000) == 100
    assert percent(5, 0) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3725, "1h02m"),
        (2 * 86400 + 3600, "2d01h"),
        (1e9, ">99d"),
        (None, ""),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration_short(seconds) == text


def test_names_from_images_cannot_drive_the_terminal() -> None:
    assert safe_text("a\x1b[31mb") == "a\\x1b[31mb"
    assert safe_text("two\nlines") == "two\\nlines"
    assert safe_text("turn\u202eround") == "turn\\u202eround"
    assert safe_text("\x9b2J") == "\\x9b2J"
    assert safe_text("bad\udcff") == "bad\\udcff"
    assert safe_text("ünïcode 漢字 ok") == "ünïcode 漢字 ok"


def test_long_text_keeps_both_ends() -> None:
    text = elide_middle("Could not open '/very/long/path/to/some/image.qcow2': No such file or directory", 40)
    assert len(text) == 40
    assert text.startswith("Could not open")
    assert text.endswith("such file or directory")
    assert elide_middle("short", 40) == "short"


def test_basename() -> None:
    assert basename("/img/base.raw") == "base.raw"
    assert basename("nbd://host/export") == "export"
    # Of a json: name the file in it, if there is one.
    assert basename('json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a/b.img"}}') == "b.img"
    assert basename('json:{"driver": "quorum", "children": ["a", "b"]}') == ""
    assert basename("json:{no") == "json:{no"


def test_sparkline_tells_nothing_from_little() -> None:
    assert sparkline([0, 1, 1000], "123") == " 13"
    assert sparkline([0, 0], "123") == "  "
