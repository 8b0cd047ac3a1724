"""Declaring types: names on the wire, optional members, unions, alternates, conversion both ways."""

from __future__ import annotations

import copy
import sys
import types
from typing import Annotated, Any

import pytest

from engine.errors import GenericError
from engine.qapi import NULL, Alternate, Enum, Feature, Null, Struct, Union, Wire, from_wire, tag_enum, to_wire
from tests.engine.qapi import sample


class Colour(Enum):
    RED = "red"
    GREEN = "green"
    __features__ = {"green": ["deprecated"]}  # noqa: RUF012


class Point(Struct):
    """A point.

    x_pos: how far right,
        in steps
    y-pos: how far down
    """

    x_pos: int
    y_pos: int = 7
    from_: str | None = None
    odd_name: Annotated[str | None, Wire("odd_name"), Feature("unstable")] = None


class Point3(Point, underscores=True):
    z_pos: int | None


class Holder(Struct):
    points: list[Point]
    colour: Colour = Colour.RED


class Shape(Union, tag="kind", tag_enum="TestShapeKind"):
    kind: str
    label: str | None = None


class Circle(Struct):
    radius: int


Shape.add_branch("circle", Circle)
Shape.add_branch("none", Struct)


def test_members_come_base_first_with_their_wire_names() -> None:
    members = Point3.qapi_members()
    assert [m.name for m in members] == ["x-pos", "y-pos", "from", "odd_name", "z_pos"]
    assert [m.optional for m in members] == [False, True, True, True, True]
    assert [m.attr for m in members][2] == "from_"
    assert members[3].features == (Feature("unstable"),)


def test_docstrings_describe_members() -> None:
    members = Point3.qapi_members()
    assert members[0].doc == "how far right, in steps"
    assert members[1].doc == "how far down"
    assert members[2].doc == ""
    assert {m.name: m.doc for m in sample.registry.commands["block_resize"].arguments}["size"] == (
        "new length in bytes, of the guest's disk"
    )
    assert sample.registry.commands["block_resize"].doc == "Change the length of a node."


def test_a_struct_is_a_value() -> None:
    point = Point(x_pos=1)
    assert (point.x_pos, point.y_pos, point.from_) == (1, 7, None)
    assert point == Point(x_pos=1, y_pos=7)
    assert point != Point(x_pos=2)
    assert point != Point3(x_pos=1, z_pos=None)
    assert repr(point) == "Point(x_pos=1, y_pos=7)"
    other = copy.copy(point)
    other.x_pos = 9
    assert point.x_pos == 1


def test_a_struct_refuses_missing_and_unknown_members() -> None:
    with pytest.raises(TypeError, match="lacks the member 'x_pos'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no member 'nope'"):
        Point(x_pos=1, nope=2)  # type: ignore[call-arg]


def test_a_struct_crosses_the_wire_and_back() -> None:
    wire = {"points": [{"x-pos": 1, "y-pos": 2, "from": "there", "odd_name": "o"}], "colour": "green"}
    holder = from_wire(Holder, wire)
    assert isinstance(holder, Holder)
    assert holder.points == [Point(x_pos=1, y_pos=2, from_="there", odd_name="o")]
    assert holder.colour is Colour.GREEN
    assert to_wire(holder) == wire


def test_absent_members_read_as_defaults_and_none_is_not_sent() -> None:
    point = from_wire(Point3, {"x-pos": 3})
    assert (point.y_pos, point.from_, point.z_pos) == (7, None, None)
    assert to_wire(point) == {"x-pos": 3, "y-pos": 7}


def test_wire_values_hold_no_types_of_ours() -> None:
    wire = to_wire({"a": (Colour.RED, Point(x_pos=1)), "b": NULL, "c": {"d": None}})
    assert wire == {"a": ["red", {"x-pos": 1, "y-pos": 7}], "b": None, "c": {"d": None}}
    assert type(wire["a"][0]) is str
    with pytest.raises(TypeError, match="set has no form"):
        to_wire({1})


def test_a_union_has_base_members_and_a_branch() -> None:
    shape = from_wire(Shape, {"label": "a", "kind": "circle", "radius": 4})
    assert (shape.kind, shape.label) == ("circle", "a")
    assert shape.branch == Circle(radius=4)
    assert to_wire(shape) == {"kind": "circle", "label": "a", "radius": 4}
    assert shape == Shape(kind="circle", label="a", branch=Circle(radius=4))
    assert shape != Shape(kind="circle", label="a", branch=Circle(radius=5))
    assert repr(shape) == "Shape(kind='circle', label='a', branch=Circle(radius=4))"


def test_an_empty_branch_is_an_empty_struct() -> None:
    shape = from_wire(Shape, {"kind": "none"})
    assert shape.branch == Struct()
    assert to_wire(shape) == {"kind": "none"}
    assert Shape(kind="none").branch == Struct()


def test_branches_may_be_added_after_first_use() -> None:
    class Late(Union, tag="kind", tag_enum="TestLateKind"):
        kind: str

    Late.add_branch("circle", Circle)
    assert from_wire(Late, {"kind": "circle", "radius": 1}).branch.radius == 1
    with pytest.raises(GenericError, match="does not accept value 'square'"):
        from_wire(Late, {"kind": "square", "radius": 1})
    Late.add_branch("square", Circle, features=["unstable"], since="9.0")
    assert from_wire(Late, {"kind": "square", "radius": 2}).branch.radius == 2
    assert tag_enum("TestLateKind").values["square"] == (Feature("unstable"),)
    assert tag_enum("TestLateKind").since == {"square": "9.0"}
    with pytest.raises(ValueError, match="has a branch 'square' already"):
        Late.add_branch("square", Circle)


def test_unions_that_share_a_tag_share_its_values() -> None:
    created = from_wire(sample.CreateOptions, {"driver": "quorum"})
    assert created.driver == "quorum"
    assert created.branch == Struct()


def test_a_branch_may_be_added_where_there_was_none_with_members() -> None:
    class Early(Union, tag="kind", tag_enum="TestEarlyKind"):
        kind: str

    class Later(Union, tag="kind", tag_enum="TestEarlyKind"):
        kind: str

    Early.add_branch("circle", Circle)
    assert from_wire(Later, {"kind": "circle"}).branch == Struct()
    Later.add_branch("circle", Circle)
    assert from_wire(Later, {"kind": "circle", "radius": 3}).branch == Circle(radius=3)


def test_a_tag_without_annotation_comes_first() -> None:
    assert [m.name for m in sample.AddressLegacy.qapi_members()] == ["type"]

    class Marked(Union, tag="kind", tag_enum="TestShapeKind"):
        size: int

    assert [m.name for m in Marked.qapi_members()] == ["kind", "size"]
    with pytest.raises(GenericError, match="'kind' is missing"):
        from_wire(Marked, {})


def test_a_tag_may_be_an_enum_of_its_own() -> None:
    address = from_wire(sample.Address, {"type": "unix", "path": "/x"})
    assert address.type is sample.AddressType.UNIX
    assert to_wire(address) == {"type": "unix", "path": "/x"}
    legacy = from_wire(sample.AddressLegacy, {"type": "unix", "data": {"path": "/x"}})
    assert legacy.branch.data == sample.Unix(path="/x")
    assert to_wire(legacy) == {"type": "unix", "data": {"path": "/x"}}


def test_an_alternate_goes_by_the_json_type() -> None:
    options = from_wire(sample.Options, {"driver": "qcow2", "file": {"driver": "raw", "file": "f0"}, "backing": None})
    assert options.branch.file.driver == "raw"
    assert options.branch.file.branch.file == "f0"
    assert options.branch.backing is NULL
    assert to_wire(options) == {"driver": "qcow2", "file": {"driver": "raw", "file": "f0"}, "backing": None}
    assert from_wire(sample.Options, {"driver": "qcow2", "file": "f0"}).branch.backing is None


def test_null_is_one_value_and_false() -> None:
    assert Null() is NULL
    assert not NULL
    assert copy.deepcopy(NULL) is NULL
    assert repr(NULL) == "NULL"


def test_any_takes_everything() -> None:
    value = {"a": [1, None, {"b": 2.5}]}
    assert from_wire(Any, value) == value


def test_negative_numbers_wrap_where_only_positive_ones_belong() -> None:
    # As the wire of QEMU always took them.
    assert from_wire(sample.Tiny, {"size": -1}).size == (1 << 64) - 1


def test_numbers_may_be_whole() -> None:
    assert from_wire(sample.Tiny, {"number": 3}).number == 3
    assert from_wire(sample.Tiny, {"number": 0.5}).number == 0.5


def test_annotations_may_name_structs_of_modules_not_imported_yet() -> None:
    first, second = types.ModuleType("qapi_test_first"), types.ModuleType("qapi_test_second")
    sys.modules.update({first.__name__: first, second.__name__: second})
    try:
        exec(
            "from __future__ import annotations\nfrom engine.qapi import Struct\n"
            "class QapiTestOuter(Struct):\n    inner: QapiTestInner | None = None\n",
            vars(first),
        )
        exec("from engine.qapi import Struct\nclass QapiTestInner(Struct):\n    a: int\n", vars(second))
        outer = from_wire(first.QapiTestOuter, {"inner": {"a": 1}})
        assert type(outer.inner) is second.QapiTestInner
    finally:
        del sys.modules[first.__name__], sys.modules[second.__name__]


def test_what_cannot_be_told_apart_is_refused() -> None:
    class Unclear(Struct):
        member: int | str

    with pytest.raises(TypeError, match="needs an Alternate"):
        from_wire(Unclear, {"member": 1})

    class Strange(Struct):
        member: set[int]

    with pytest.raises(TypeError, match="no type of the schema"):
        from_wire(Strange, {"member": 1})


def test_a_name_that_two_modules_use_needs_an_import() -> None:
    alternate = Alternate("Ambiguous", branch="NoSuchStructAnywhere")
    with pytest.raises(TypeError, match="no struct called NoSuchStructAnywhere"):
        _ = alternate.branches


def test_values_of_an_enum_may_have_features() -> None:
    assert Colour.value_features("green") == (Feature("deprecated"),)
    assert Colour.value_features("red") == ()
    assert str(Colour.RED) == "red"
