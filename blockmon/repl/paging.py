"""Long answers through the user's pager: $PAGER, or less."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Mapping

from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import BaseStyle

from blockmon.repl.printers import Fragments

USUAL = "less -R"

# Sequences other than colours, which a pager would show as they are.
_NO_COLOUR = re.compile(r"\x1b\[\??[\d;]*[A-Za-ln-z]")


def pager_command(environ: Mapping[str, str] = os.environ) -> str:
    """The user's pager, a shell command."""
    return environ.get("PAGER", "").strip() or USUAL


def coloured(fragments: Fragments, style: BaseStyle, depth: ColorDepth) -> str:
    """*fragments* with the terminal's own sequences for their colours."""
    out = io.StringIO()
    output = Vt100_Output(out, lambda: Size(rows=24, columns=80), term="xterm-256color", default_color_depth=depth)
    print_formatted_text(output, FormattedText(fragments), style, color_depth=depth)
    output.flush()
    return _NO_COLOUR.sub("", out.getvalue()).replace("\r\n", "\n")


async def page(text: str, command: str) -> bool:
    """Show *text* by the shell command *command*, which has the terminal until it ends; whether it could be run."""
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.PIPE,
        # Of less: lines are not broken up, and what fits is not held back.
        env={**os.environ, "LESS": os.environ.get("LESS", "R")},
    )
    assert process.stdin is not None
    try:
        try:
            process.stdin.write(text.encode("utf-8", "replace"))
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # left before the end
        process.stdin.close()
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    return status not in (126, 127)
