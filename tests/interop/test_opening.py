"""Opening by options, by name and by ``json:``; backing chains, whole and broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.graph.policy import OpenPolicy
from engine.graph.reopen import set_read_only
from engine.graph.status import chain
from tests.graphs import Bench
from tests.qemu import QemuImages


def names(node: object) -> list[str]:
    return [Path(member.filename).name for member in chain(node)]  # type: ignore[arg-type]


def test_filename_is_probed_and_its_chain_followed(bench: Bench, images: QemuImages) -> None:
    paths = images.chain(bench.folder, 3, size=1 << 20, writes=2)
    node = open_node(bench.graph, {"read-only": True}, filename=str(paths[-1]))
    assert names(node) == ["overlay2.qcow2", "overlay1.qcow2", "base.qcow2"]
    assert [member.driver.name for member in chain(node)] == ["qcow2"] * 3
    assert all(member.read_only for member in chain(node))
    assert node.filename == str(paths[-1])
    bench.graph.unpin(node)
    assert not bench.graph.nodes


def test_relative_backing_names_are_relative_to_their_image(
    bench: Bench, images: QemuImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.folder / "images"
    folder.mkdir()
    images.create(folder / "base.raw", 1 << 20, fmt="raw")
    images.create(folder / "top.qcow2", backing="base.raw", backing_format="raw")
    monkeypatch.chdir(bench.folder)
    node = open_node(bench.graph, {}, filename="images/top.qcow2")
    assert node.backing is not None
    assert node.backing.child.filename == "images/base.raw"
    assert node.backing.child.driver.name == "raw"
    bench.graph.unpin(node)


def test_json_names_carry_options(bench: Bench, images: QemuImages) -> None:
    path = images.create(bench.folder / "a.qcow2", 1 << 20)
    name = "json:" + json.dumps({"driver": "raw", "offset": "512", "file.driver": "file", "file.filename": str(path)})
    node = open_node(bench.graph, {"read-only": True}, filename=name)
    assert node.driver.name == "raw"
    assert node.length == -(-(path.stat().st_size - 512) // 512) * 512
    bench.graph.unpin(node)
    with pytest.raises(GenericError, match="Could not parse the JSON options: "):
        open_node(bench.graph, {}, filename="json:{nope")
    with pytest.raises(GenericError, match="Unknown protocol 'nope'"):
        open_node(bench.graph, {}, filename="nope:x")


def test_backing_null_opens_one_layer_and_says_so_in_its_name(bench: Bench, images: QemuImages) -> None:
    paths = images.chain(bench.folder, 2, size=1 << 20, writes=1)
    node = bench.add(driver="qcow2", node_name="top", backing=None, file={"driver": "file", "filename": str(paths[1])})
    assert node.backing is None
    assert json.loads(node.filename.removeprefix("json:"))["backing"] is None


def test_missing_backing_file_fails_the_opening_and_leaves_nothing(bench: Bench, images: QemuImages) -> None:
    paths = images.chain(bench.folder, 3, size=1 << 20, writes=1)
    paths[0].unlink()
    with pytest.raises(GenericError) as caught:
        open_node(bench.graph, {}, filename=str(paths[-1]))
    assert caught.value.desc == (
        "Could not open backing file: Could not open backing file: "
        f"Could not open '{paths[0]}': No such file or directory"
    )
    assert not bench.graph.nodes


def loop(folder: Path, images: QemuImages) -> tuple[Path, str]:
    a, b = images.create(folder / "a.qcow2", 1 << 20), images.create(folder / "b.qcow2", 1 << 20)
    images.run("rebase", "-u", "-b", a.name, "-F", "qcow2", b)
    images.run("rebase", "-u", "-b", b.name, "-F", "qcow2", a)
    return a, "the chain loops"


def missing(folder: Path, images: QemuImages) -> tuple[Path, str]:
    base = images.create(folder / "base.qcow2", 1 << 20)
    top = images.create(folder / "top.qcow2", backing=base.name)
    base.unlink()
    return top, "No such file or directory"


def wrong_format(folder: Path, images: QemuImages) -> tuple[Path, str]:
    images.create(folder / "base.raw", 1 << 20, fmt="raw")
    top = images.create(folder / "top.qcow2", 1 << 20)
    images.run("rebase", "-u", "-b", "base.raw", "-F", "qcow2", top)
    return top, "Image is not in qcow2 format"


def unknown_format(folder: Path, images: QemuImages) -> tuple[Path, str]:
    path, _ = missing(folder, images)
    content = path.read_bytes()
    assert b"qcow2\0" in content
    path.write_bytes(content.replace(b"qcow2\0", b"nope2\0"))
    return path, "Unknown driver 'nope2'"


def forbidden(folder: Path, images: QemuImages) -> tuple[Path, str]:
    path, _ = missing(folder, images)
    (folder / "base.qcow2").mkdir()
    return path, "Is a directory"


@pytest.mark.parametrize("damage", [loop, missing, wrong_format, unknown_format, forbidden])
def test_broken_links_leave_the_rest_of_the_chain(bench: Bench, images: QemuImages, damage: object) -> None:
    top, reason = damage(bench.folder, images)  # type: ignore[operator]
    policy = OpenPolicy(tolerate_broken=True)
    node = open_node(bench.graph, {"read-only": True, "force-share": True}, filename=str(top), policy=policy)
    # With a loop the second image stands too, and it is its link that is broken.
    broken = [member for member in chain(node) if member.broken_links]
    assert len(broken) == 1
    assert reason in broken[0].broken_links["backing"][1]
    # What lies behind the broken link must not read as zeros.
    with pytest.raises(OSError, match=os.strerror(5)):
        node.read(0, memoryview(bytearray(512)))
    bench.graph.unpin(node)
    assert not bench.graph.nodes


def test_policy_can_refuse_what_images_name(bench: Bench, images: QemuImages) -> None:
    paths = images.chain(bench.folder, 2, size=1 << 20, writes=1)
    with pytest.raises(GenericError, match="Not opening backing file"):
        open_node(bench.graph, {}, filename=str(paths[1]), policy=OpenPolicy(follow=False))
    images.create(bench.folder / "third.qcow2", backing=paths[1].name)
    with pytest.raises(GenericError, match="Backing chain is longer than 1 images"):
        open_node(bench.graph, {}, filename=str(bench.folder / "third.qcow2"), policy=OpenPolicy(max_depth=1))
    assert not bench.graph.nodes


def test_probed_images_become_writable_with_their_files(bench: Bench, images: QemuImages) -> None:
    """A backing file without a format in the header, made writable as a commit does it."""
    base = images.create(bench.folder / "base.qcow2", 1 << 20)
    top = images.create(bench.folder / "top.qcow2", 1 << 20)
    bare = open_node(bench.graph, {}, filename=str(top))
    bare.driver.change_backing_string(base.name, None)
    bench.graph.unpin(bare)
    assert "backing-filename-format" not in images.info(top)
    node = open_node(bench.graph, {}, filename=str(top))
    assert node.backing is not None
    below = node.backing.child
    assert below.driver.name == "qcow2"
    set_read_only(below, False)
    backend = bench.graph.add_backend("user", "", below, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    backend.write(0, memoryview(b"x" * 512))
    bench.graph.remove_backend(backend)
    set_read_only(below, True)
    assert below.file is not None
    assert below.file.child.read_only
    bench.graph.unpin(node)
    images.check(base)
