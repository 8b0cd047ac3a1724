"""Chains made by the real tools, changed by `blockmon run`, judged by the real tools."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu import QemuImages

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = {"cluster_size": 4096}
LARGE = {"cluster_size": 65536, "lazy_refcounts": "on"}


@pytest.fixture(params=[{}, SMALL, LARGE], ids=["default", "4k", "64k-lazy"])
def chain(request: pytest.FixtureRequest, images: QemuImages, tmp_path: Path) -> list[Path]:
    """Four layers, base first, and beside them `reference.raw`: what the guest saw before."""
    made = images.chain(tmp_path, 4, **request.param)
    images.run("convert", "-O", "raw", made[-1], tmp_path / "reference.raw")
    return made


def add_top(chain: list[Path]) -> str:
    return (
        f"blockdev-add driver=qcow2 node-name=top file.driver=file file.filename={chain[-1]} "
        "backing.node-name=mid2 backing.driver=qcow2 backing.file.driver=file "
        f"backing.file.filename={chain[-2]} "
        "backing.backing.node-name=mid1 backing.backing.driver=qcow2 backing.backing.file.driver=file "
        f"backing.backing.file.filename={chain[-3]} "
        "backing.backing.backing.node-name=base backing.backing.backing.driver=qcow2 "
        f"backing.backing.backing.file.driver=file backing.backing.backing.file.filename={chain[0]}\n"
    )


def succeed(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def unchanged(images: QemuImages, image: Path) -> None:
    images.check(image)
    images.assert_identical(image, image.parent / "reference.raw", b_format="raw")


def test_chain_is_flattened(images: QemuImages, chain: list[Path], run_script: RunScript) -> None:
    succeed(
        run_script(
            add_top(chain)
            + "block-stream job-id=j device=top\n@wait-job j success timeout=60s\nblockdev-del node-name=top\n"
        )
    )
    assert "backing-filename" not in images.info(chain[-1])
    unchanged(images, chain[-1])


def test_intermediate_layers_are_committed(images: QemuImages, chain: list[Path], run_script: RunScript) -> None:
    succeed(
        run_script(
            add_top(chain)
            + "block-commit job-id=j device=top top-node=mid2 base-node=base\n@wait-job j success timeout=60s\n"
        )
    )
    assert images.info(chain[-1])["full-backing-filename"] == str(chain[0])
    for image in (chain[0], chain[-1]):
        images.check(image)
    unchanged(images, chain[-1])


def test_active_layer_is_committed(images: QemuImages, chain: list[Path], run_script: RunScript) -> None:
    succeed(
        run_script(
            add_top(chain) + "block-commit job-id=j device=top base-node=base\n"
            "@wait-job j ready timeout=60s\n@wait-event BLOCK_JOB_READY device=j\n"
            "job-complete id=j\n@wait-job j success timeout=60s\n"
        )
    )
    unchanged(images, chain[0])


def test_failing_job_stops_the_script(images: QemuImages, tmp_path: Path, run_script: RunScript) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(range(256)) * 4096)
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    images.run("convert", "-c", "-O", "qcow2", raw, base)
    images.create(top, backing=base)
    # Damage what is compressed, so that it cannot be read.
    host = next(extent for extent in images.map(base) if extent["data"])
    assert "offset" not in host
    content = bytearray(base.read_bytes())
    content[0x50000:] = b"\xff" * len(content[0x50000:])
    base.write_bytes(content)
    done = run_script(
        f"blockdev-add driver=qcow2 node-name=top file.driver=file file.filename={top}\n"
        "block-stream job-id=j device=top\n"
        "# the next line is the fourth\n"
        "@wait-job j concluded timeout=60s\n"
        "query-jobs\n"
    )
    assert done.stderr == "<stdin>:4:1: job 'j' failed: Input/output error\n"
    assert (done.returncode, done.stdout) == (1, "{}\n{}\n")
