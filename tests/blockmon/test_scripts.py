"""The sample command files in scripts/ do what they say."""

import os
from pathlib import Path

import pytest

from blockmon import cli

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.bmon"))


def test_there_are_samples() -> None:
    names = {path.stem for path in SCRIPTS}
    assert names >= {"snapshots", "commit", "incremental-backup", "quorum-repair", "live-move"}


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_sample(script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "with blanks"
    folder.mkdir()
    assert cli.main(["run", "--dry-run", "--set", f"DIR={folder}", str(script)]) == 0
    assert os.listdir(folder) == []

    assert cli.main(["run", "--set", f"DIR={folder}", str(script)]) == 0, capfd.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_recording_of_a_sample_replays(script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "recording.bmon"
    assert cli.main(["run", "--record", str(recording), "--set", f"DIR={tmp_path}", str(script)]) == 0
    commands = sum(line[:1] not in ("", "#", "@") for line in recording.read_text().splitlines())
    assert commands > 20
    assert cli.main(["run", "--dry-run", str(recording)]) == 0
    assert cli.main(["run", str(recording)]) == 0, capfd.readouterr().err + recording.read_text()
