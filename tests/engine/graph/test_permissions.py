from __future__ import annotations

import pytest

from engine.errors import GenericError
from engine.graph.change import Transaction, attach, refresh_permissions, replace_node
from engine.graph.permissions import Perm, Role, default_child_permissions
from engine.graph.reopen import set_read_only
from tests.graphs import Bench

READ, WRITE = Perm.CONSISTENT_READ, Perm.WRITE
UNCHANGED, RESIZE = Perm.WRITE_UNCHANGED, Perm.RESIZE


@pytest.mark.parametrize(
    ("role", "writable", "given", "expected"),
    [
        (Role.FILTERED, True, (WRITE, READ), (WRITE, READ)),
        (Role.COW, True, (READ | WRITE, Perm.ALL), (READ, Perm.ALL)),
        (Role.COW, True, (READ | WRITE, READ), (READ, READ | UNCHANGED)),
        (Role.IMAGE, True, (Perm.NONE, Perm.ALL), (READ | WRITE | RESIZE, READ | UNCHANGED)),
        (Role.IMAGE, False, (Perm.NONE, Perm.ALL), (READ, READ | UNCHANGED)),
        (Role.DATA, True, (WRITE, Perm.ALL), (WRITE | RESIZE, READ | WRITE | UNCHANGED)),
        (Role.DATA, True, (UNCHANGED, Perm.ALL), (UNCHANGED | WRITE | RESIZE, READ | WRITE | UNCHANGED)),
        (Role.DATA, True, (Perm.NONE, Perm.ALL), (Perm.NONE, READ | WRITE | UNCHANGED)),
    ],
)
def test_default_rule(role: Role, writable: bool, given: tuple[Perm, Perm], expected: tuple[Perm, Perm]) -> None:
    assert default_child_permissions(role, *given, writable=writable) == expected


def test_conflict_names_both_parents_and_changes_nothing(bench: Bench) -> None:
    node = bench.raw("r")
    bench.graph.add_backend("device", "vda", node, READ | WRITE, READ)
    with pytest.raises(GenericError) as caught:
        bench.graph.add_backend("export", "", node, READ | WRITE, Perm.ALL)
    assert caught.value.desc.startswith("Permission conflict on node 'r': permissions 'write' are both required by ")
    assert "block device 'vda' (uses node 'r' as 'root' child)" in caught.value.desc
    assert "an unnamed block device (uses node 'r' as 'root' child)" in caught.value.desc
    assert [edge.parent.parent_name for edge in node.parents] == ["vda"]
    assert len(bench.graph.backends) == 1


def test_writer_needs_writable_node(bench: Bench) -> None:
    node = bench.raw("r", read_only=True)
    with pytest.raises(GenericError, match=r"^Block node is read-only$"):
        bench.graph.add_backend("device", "vda", node, READ | WRITE, READ)
    bench.graph.add_backend("device", "vda", node, READ, READ)


def test_force_share_needs_read_only(bench: Bench) -> None:
    with pytest.raises(GenericError, match="force-share=on can only be used with read-only images"):
        bench.raw("r", force_share=True)


def test_read_only_follows_to_inherited_children_only(bench: Bench) -> None:
    inline = bench.raw("inline", read_only=True)
    assert inline.file is not None
    set_read_only(inline, False)
    assert not inline.read_only
    assert not inline.file.child.read_only

    path = bench.file("own.raw", bytes(512))
    bench.add(driver="file", node_name="own-file", filename=path, read_only=True)
    own = bench.add(driver="raw", node_name="own", file="own-file", read_only=True)
    set_read_only(own, False)
    assert own.file is not None
    assert own.file.child.read_only


def test_reopen_writable_lets_data_through(bench: Bench) -> None:
    node = bench.raw("r", b"a" * 512, read_only=True)
    set_read_only(node, False)
    backend = bench.graph.add_backend("device", "vda", node, READ | WRITE, READ)
    backend.write(0, memoryview(b"b" * 512))
    assert (bench.folder / "r.raw").read_bytes() == b"b" * 512
    with pytest.raises(GenericError, match="Read-only block node 'r' cannot support read-write users"):
        set_read_only(node, True)
    assert not node.read_only


def test_cycle_is_refused(bench: Bench) -> None:
    node = bench.raw("r")
    assert node.file is not None
    with (
        pytest.raises(GenericError, match=r"Making 'r' a file child of '.*' would create a cycle"),
        Transaction() as txn,
    ):
        attach(txn, node.file.child, node, "file", Role.IMAGE)


def test_replacing_a_node_moves_its_users_and_can_be_undone(bench: Bench) -> None:
    old, new = bench.raw("old"), bench.raw("new")
    backend = bench.graph.add_backend("device", "vda", old, READ, Perm.ALL)
    undone = Transaction()
    replace_node(undone, old, new)
    refresh_permissions(undone, [old, new])
    assert backend.node is new
    undone.undo()
    assert backend.node is old
    with Transaction() as txn:
        replace_node(txn, old, new)
    assert backend.node is new
    assert not old.parents
    assert old.name in bench.graph.nodes  # the monitor still owns it


def test_unowned_nodes_go_with_their_last_user(bench: Bench) -> None:
    node = bench.raw("r")
    assert node.file is not None
    child = node.file.child.name
    node.monitor_owned = False
    bench.graph.release_if_unused(node)
    assert "r" not in bench.graph.nodes
    assert child not in bench.graph.nodes
