"""What may import what, looked at in fresh interpreters: the import linter reads the source, this sees what happens."""

import json
import subprocess
import sys

import pytest


def modules_after(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded after *statement*."""
    code = f"{statement}\nimport json, sys\nsys.__stdout__.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_engine_has_no_screen() -> None:
    loaded = packages(modules_after("import engine.engine"))
    assert "engine" in loaded
    assert not loaded & {"blockmon", "textual", "rich", "prompt_toolkit", "pygments"}


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["doctor", "x"]])
def test_answers_about_itself_load_nothing_heavy(args: list[str]) -> None:
    loaded = packages(modules_after(f"from blockmon.cli import main; main({args!r})"))
    assert "blockmon" in loaded
    assert not loaded & {"textual", "prompt_toolkit", "pygments", "asyncio", "argparse", "logging", "engine"}


@pytest.mark.parametrize("module", ["blockmon.replay.program", "blockmon.lang", "blockmon.backend"])
def test_no_screen_without_need(module: str) -> None:
    assert not packages(modules_after(f"import {module}")) & {"textual", "rich", "prompt_toolkit", "pygments"}


def test_repl_needs_no_textual() -> None:
    assert "textual" not in packages(modules_after("import blockmon.repl"))
