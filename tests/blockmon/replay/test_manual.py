"""What the help says about command files."""

import pytest

from blockmon import cli
from blockmon.replay.directives import NAMES, find_directive
from blockmon.replay.manual import manual


def test_every_directive_says_what_it_does() -> None:
    for name in NAMES:
        known = find_directive(name)
        assert known is not None
        assert known.help.endswith(".")
        assert "raises" not in known.help.lower()


def test_the_help_of_run_tells_all_of_the_language(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    told = capsys.readouterr().out
    for name in NAMES:
        assert f"\n  @{name}" in told
    for word in ("----", "${env:NAME}", "(glob)", ".length()", "Exit status:"):
        assert word in told


def test_the_help_fits() -> None:
    assert max(map(len, manual(72).splitlines())) <= 72
