"""An answer on the terminal that changes in its place, until Enter or Ctrl+C."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import FormattedText, split_lines
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.styles import BaseStyle

from blockmon.repl.printers import NOTICE, Fragments


async def follow(frames: AsyncIterator[Fragments], style: BaseStyle) -> Fragments:
    """Show *frames* one in place of the other; returns the last one, to be printed for good."""
    last: Fragments = []
    control = FormattedTextControl(lambda: _cut(last, app.output.get_size().rows - 1))
    bindings = KeyBindings()

    @bindings.add("enter")
    @bindings.add("c-c")
    @bindings.add("c-d")
    @bindings.add("q")
    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        event.app.exit()

    app: Application[None] = Application(
        layout=Layout(Window(control, always_hide_cursor=True)),
        key_bindings=bindings,
        style=style,
        include_default_pygments_style=False,
        erase_when_done=True,
    )

    async def show() -> None:
        nonlocal last
        async for frame in frames:
            last = frame
            app.invalidate()
        if app.is_running:
            app.exit()

    task: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal task
        task = asyncio.get_running_loop().create_task(show())

    try:
        await app.run_async(pre_run=begin, handle_sigint=False)
    finally:
        if task is not None:
            done = task.done()
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            if done and isinstance(results[0], Exception):
                raise results[0]
    return last


def _cut(fragments: Fragments, rows: int) -> FormattedText:
    """What fits in *rows*, with a sign where there is more."""
    lines = list(split_lines(fragments))
    if lines and not any(text for _, text, *_ in lines[-1]):
        lines.pop()
    hidden = len(lines) - rows
    if hidden > 0:
        lines = [*lines[: rows - 1], [(NOTICE, f"… {hidden + 1} more lines")]]
    shown: Fragments = []
    for index, line in enumerate(lines):
        if index:
            shown.append(("", "\n"))
        shown += [(style, text) for style, text, *_ in line]
    return FormattedText(shown)
