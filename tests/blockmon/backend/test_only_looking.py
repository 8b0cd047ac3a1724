"""That nothing reaches a server that is only looked at, whatever is pressed, typed, sourced or run."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.backend.remote import RemoteBackend
from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.tui.app import BlockmonApp
from blockmon.tui.popups import Popup
from tests.blockmon.backend.fake_qemu import FakeQemu
from tests.blockmon.tui.screens import popup_text, text, until

LOOKING = {"qmp_capabilities", "qom-get", "qom-list"}
"""What may arrive besides queries."""

TYPED = [
    "blockdev-del node-name=top",
    '{"execute": "system_reset"}',
    '{"exec-oob": "system_reset"}',
    "qmp quit",
    "quit",
    "commit all",
    "hmp system_reset",
    "hmp info block\tall",
    "stop",
    "print $pc",
    "xp /4xw 0xfee00000",
    'qemu-io top "write 0 512"',
    "human-monitor-command command-line=stop",
    'human-monitor-command command-line="info block\\nstop"',
    "transaction actions=[]",
    "x-not-known a=b",
    "query-rx-filter",
    "Query-block",
    "query-",
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    server = FakeQemu(tmp_path / "q", "7.2")
    await server.listen()
    yield server
    await server.stop()


def what_arrived(server: FakeQemu) -> list[str]:
    """The commands that came and are not for looking."""
    found = []
    for name, arguments in server.asked:
        if name == "human-monitor-command":
            line = arguments["command-line"]
            if line.split()[0] not in ("info", "help", "print") or "\n" in line:
                found.append(line)
        elif name not in LOOKING and (not name.startswith(("query-", "x-debug-query-")) or name == "query-rx-filter"):
            found.append(name)
    return found


async def front_end(*arguments: str, typed: str, where: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "blockmon", *arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"XDG_STATE_HOME": str(where), "XDG_CONFIG_HOME": str(where), "PATH": "/usr/bin:/bin", "PYTHONPATH": "."},
    )  # fmt: skip
    async with asyncio.timeout(30):
        told, _ = await process.communicate(typed.encode())
    assert process.returncode is not None
    return process.returncode, told.decode()


async def test_from_the_prompt(server: FakeQemu, tmp_path: Path) -> None:
    script = tmp_path / "s.bmon"
    script.write_text("blockdev-del node-name=top\nhmp stop\n")
    typed = [*TYPED, f"\\source {script}", "\\watch 1 system_reset", "query-status | cat", "blockdev-del a=b | cat"]
    _, told = await front_end(
        "repl", "--connect", server.address, "--read-only", typed="\n".join(typed) + "\n", where=tmp_path
    )
    assert (
        "read-only: 'blockdev-del' may change something, and was not sent; --rw, or no --read-only, allows it" in told
    )
    assert "query-status" in {name for name, _ in server.asked}
    assert what_arrived(server) == []


async def test_from_a_command_file(server: FakeQemu, tmp_path: Path) -> None:
    lines = [line for line in TYPED if "exec-oob" not in line and "x-not-known" not in line]
    await front_end(
        "run", "--keep-going", "--connect", server.address, "--read-only", "-",
        typed="@defer system_reset\n" + "\n".join(lines) + "\n@retry 2 every 1ms\nstop\n@end\n", where=tmp_path,
    )  # fmt: skip
    assert "query-commands" in {name for name, _ in server.asked}
    assert what_arrived(server) == []


async def test_from_keys_menus_and_the_palette(server: FakeQemu) -> None:
    backend = ReadOnlyBackend(RemoteBackend(server.address))
    session = ReplSession(backend, show_events=False, local_files=False)
    app = BlockmonApp(backend, session, CommonOptions(connect=server.address, read_only=True))
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active and app.session.knowledge.schema.commands)
        done: set[str] = set()
        for pane in ("f2", "f3"):
            for row in range(1 if pane == "f3" else 4):
                await pilot.press(pane, "home", *["down"] * row)
                offered = [choice.command for choice in app.choices() if choice.word not in done]
                for command in offered:
                    await pilot.press(pane)
                    await pilot.press("a")
                    await until(pilot, lambda: isinstance(app.screen, Popup))
                    assert "read-only: not sent" in popup_text(app)
                    app.screen.dismiss(command)
                    # It is written and can be looked at, and no question pretends that it would be run.
                    await until(pilot, lambda: len(app.screen_stack) == 1 and app.prompt.text)
                    await pilot.press("enter", "escape")
                    app.prompt.set_input("")
                    done.add(command.split()[0])
        assert len(done) > 10
        await pilot.press("f2", "colon")
        await until(pilot, lambda: isinstance(app.screen, Popup))
        await pilot.press(*"system_reset")
        await until(pilot, lambda: "read-only" in popup_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.prompt.text.startswith("system_reset"))
        await pilot.press("enter")
        await until(pilot, lambda: "was not sent" in text(app))
        for key in "pcKde":
            await pilot.press("f3", key, "escape")
            await pilot.press("f2", key, "enter", "escape")
    await app.session.close()
    await app.backend.close()
    assert what_arrived(server) == []
