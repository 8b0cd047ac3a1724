"""The signs of the screen: one set for UTF-8 terminals, and one of plain ASCII for all others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from blockmon.model.format import SPARK_ASCII, SPARK_BLOCKS


@dataclass(frozen=True)
class Symbols:
    """Every sign is one cell wide and has no emoji form, which some terminals draw two cells wide."""

    tee: str
    corner: str
    line: str
    down: str
    opened: str
    closed: str
    arrow: str
    frozen_arrow: str
    see: str
    ellipsis: str
    rule: str
    rule_down: str
    rule_cross: str
    rule_up: str
    column: str
    thumb: str
    spark: str
    bar_full: str
    bar_parts: str
    bar_rest: str
    dot: str
    read: str
    write: str
    states: Mapping[str, str]
    error: str
    busy: str
    export: str
    bitmap: str
    notable: str
    caret: str

    def state(self, name: str) -> str:
        """The sign of a job's status or outcome."""
        return self.states.get(name, self.dot)


UNICODE = Symbols(
    tee="├", corner="└", line="│", down="─", opened="▼", closed="▶", arrow="→", frozen_arrow="⇒", see="↑",
    ellipsis="…", rule="─", rule_down="┬", rule_cross="┼", rule_up="┴", column="│", thumb="▐",
    spark=SPARK_BLOCKS, bar_full="█", bar_parts="▏▎▍▌▋▊▉", bar_rest="░", dot="·", read="↓", write="↑",
    states={
        "created": "○", "running": "●", "paused": "‖", "ready": "◆", "standby": "‖", "waiting": "◌", "pending": "◇",
        "aborting": "×", "concluded": "■", "completed": "✓", "failed": "✗", "cancelled": "×",
    },
    error="✗", busy="◍", export="»", bitmap="≡", notable="!", caret="▏",
)  # fmt: skip

ASCII = Symbols(
    tee="|", corner="`", line="|", down="-", opened="v", closed=">", arrow="->", frozen_arrow="=>", see="^",
    ellipsis="~", rule="-", rule_down="+", rule_cross="+", rule_up="+", column="|", thumb="#",
    spark=SPARK_ASCII, bar_full="#", bar_parts="", bar_rest=".", dot=".", read="r", write="w",
    states={
        "created": "o", "running": "*", "paused": "=", "ready": "@", "standby": "=", "waiting": "~", "pending": "?",
        "aborting": "x", "concluded": "#", "completed": "+", "failed": "X", "cancelled": "x",
    },
    error="X", busy="%", export="}", bitmap=":", notable="!", caret="_",
)  # fmt: skip


def symbols_for(environ: Mapping[str, str] | None = None) -> Symbols:
    """
    The set that the terminal can show, by its locale.

    Python turns an unset or C locale into C.UTF-8 by itself (PEP 538), so only a locale that names another character
    set, or a C locale that was asked for by LC_ALL or LANG, tells of a terminal without UTF-8.
    """
    environ = os.environ if environ is None else environ
    # The font of a Linux console has 256 or 512 characters, and these are not among them.
    if environ.get("TERM") in ("dumb", "linux", "vt100", "vt220"):
        return ASCII
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    if locale == "C.UTF-8" and not environ.get("LC_ALL") and environ.get("LANG") in ("C", "POSIX"):
        return ASCII
    if not locale:
        return UNICODE
    codeset = locale.partition(".")[2].partition("@")[0].replace("-", "").lower()
    return UNICODE if codeset == "utf8" else ASCII
