"""The benchmarks run, and their table says what was measured. No figure is judged here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "bench"


def run(*args: str) -> str:
    done = subprocess.run([sys.executable, *args], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_table_for_the_readme(qsd: str, qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    out = run("table.py", "--quick", "--markdown", "--only", "filters", "--folder", str(tmp_path))
    machine, _, table = out.partition("\n\n")
    assert "cores" in machine
    assert "QEMU 7.2" in machine
    lines = table.strip().splitlines()
    assert lines[0] == "| Depth of a filter chain | blockmon | peer | ratio |"
    assert {line.count("|") for line in lines} == {5}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["nodes.py", "10"], ["memory.py", "5"], ["commands.py", "0.02", "1"]], ids=str)
def test_pieces_beside_the_daemon(qsd: str, qemu_img: str, args: list[str]) -> None:
    lines = [line for line in run(*args).splitlines() if line.strip()]
    assert len(lines) >= 4
    # Ours, the daemon's, and the ratio.
    assert len([line for line in lines if len([word for word in line.split() if word[0].isdigit()]) >= 3]) >= 3


def test_one_job(qsd: str, qemu_img: str, tmp_path: Path) -> None:
    out = run("jobs.py", "--size", "4", "--rounds", "1", "--folder", str(tmp_path), "--only", "mirror raw -> raw, full")
    first, last = out.splitlines()
    assert first.startswith("mirror raw -> raw, full")
    assert "the time of cp" in first
    assert last.startswith("geometric mean")
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_better_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from _sides import Row, geometric_mean, shown, summary  # type: ignore[import-not-found]

    rows = [Row("rate", 30.0, 10.0, "/s", more=True), Row("time", 20.0, 60.0, "ms"), Row("own", 5.0, None, "ms")]
    assert [row.ratio for row in rows] == [3.0, 3.0, None]
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert summary(rows) == "geometric mean 3.00, least 3.00"
    assert Row("late", 100.0, None, "ms", limit=50).ratio == 0.5
    assert "(limit)" in shown(Row("late", 100.0, None, "ms", limit=50))
