#!/usr/bin/env python3
"""Draw the README's picture: the screen of ``blockmon demo``, once its jobs have got somewhere.

Run it with the project's Python: .venv/bin/python scripts/picture.py [FILE.svg]
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

from blockmon.backend import open_backend
from blockmon.demo import build
from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.tui.app import BlockmonApp

SIZE = (132, 36)
WATCHED_SECONDS = 12.0
"""Long enough for sparklines and rates to mean something."""


async def draw() -> str:
    """The screen as SVG."""
    with tempfile.TemporaryDirectory(prefix="blockmon-picture-") as folder:
        options = CommonOptions(theme="dark", prepare=partial(build, Path(folder)))
        backend = open_backend(options)
        session = ReplSession(backend, show_events=False)
        app = BlockmonApp(backend, session, options)
        try:
            async with app.run_test(size=SIZE) as pilot:
                await pilot.pause(WATCHED_SECONDS)
                await pilot.press("f2", "down", "down", "f5", *"block-job-pause device=")
                await pilot.pause(1)
                # A picture in a repository must not fetch fonts from elsewhere.
                return re.sub(
                    r"@font-face \{.*?\}\s*", "", app.export_screenshot(title="blockmon demo"), flags=re.DOTALL
                )
        finally:
            await session.close()
            await backend.close()


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("screen.svg")
    target.write_text(asyncio.run(draw()))


if __name__ == "__main__":
    main()
