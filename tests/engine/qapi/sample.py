"""A few of QEMU 7.2's commands declared in our language, so that their checks can be compared with the real ones."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from engine.qapi import (
    Alternate,
    Enum,
    Feature,
    Null,
    Registry,
    Size,
    Struct,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Union,
    Wire,
)

registry = Registry()


class OnOffAuto(Enum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Discard(Enum):
    IGNORE = "ignore"
    UNMAP = "unmap"


class DetectZeroes(Enum):
    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class OverlapMode(Enum):
    NONE = "none"
    CONSTANT = "constant"
    CACHED = "cached"
    ALL = "all"


class CacheOptions(Struct):
    direct: bool | None = None
    no_flush: bool | None = None


class Options(Union, tag="driver", tag_enum="SampleDriver"):
    """Options of a node.

    node-name: how the node is
        called
    """

    driver: str
    node_name: str | None = None
    discard: Discard | None = None
    cache: CacheOptions | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: DetectZeroes | None = None


Ref: TypeAlias = Annotated[Options | str, Alternate("BlockdevRef", definition="Options", reference=str)]
RefOrNull: TypeAlias = Annotated[
    Options | str | Null, Alternate("BlockdevRefOrNull", definition=Options, reference=str, null=Null)
]


class GenericFormat(Struct):
    file: Ref


class Raw(GenericFormat):
    offset: int | None = None
    size: int | None = None


class OverlapFlags(Struct, underscores=True):
    template: OverlapMode | None = None
    main_header: Annotated[bool | None, Wire("main-header")] = None


OverlapChecks: TypeAlias = Annotated[
    OverlapMode | OverlapFlags, Alternate("Qcow2OverlapChecks", flags=OverlapFlags, mode=OverlapMode)
]


class GenericCow(GenericFormat):
    backing: RefOrNull | None = None


class Qcow2(GenericCow):
    lazy_refcounts: bool | None = None
    overlap_check: OverlapChecks | None = None
    cache_size: int | None = None


class NullDevice(Struct):
    size: int | None = None
    latency_ns: UInt64 | None = None
    read_zeroes: bool | None = None


class File(Struct, features=["dynamic-auto-read-only"]):
    filename: str
    locking: OnOffAuto | None = None
    x_check_cache_dropped: Annotated[bool | None, Feature("unstable")] = None


class AddressType(Enum):
    INET = "inet"
    UNIX = "unix"


class Inet(Struct):
    host: str
    port: str
    to: UInt16 | None = None


class Unix(Struct):
    path: str


class Address(Union, tag="type"):
    type: AddressType


Address.add_branch("inet", Inet)
Address.add_branch("unix", Unix)


class AddressLegacy(Union, tag="type", tag_enum=AddressType):
    pass


AddressLegacy.add_branch("inet", Inet, wrap="data")
AddressLegacy.add_branch("unix", Unix, wrap="data")


class Nbd(Struct):
    server: Address
    reconnect_delay: UInt32 | None = None


class Quorum(Struct):
    vote_threshold: int
    children: list[Ref]


for name, struct in {
    "raw": Raw,
    "qcow2": Qcow2,
    "null-co": NullDevice,
    "file": File,
    "nbd": Nbd,
    "quorum": Quorum,
    "vmdk": GenericCow,
}.items():
    Options.add_branch(name, struct)


class CreateOptions(Union, tag="driver", tag_enum="SampleDriver"):
    driver: str


class CreateFile(Struct):
    filename: str
    size: Size


class CreateQcow2(Struct):
    file: Ref
    size: Size
    refcount_bits: int | None = None


CreateOptions.add_branch("file", CreateFile)
CreateOptions.add_branch("qcow2", CreateQcow2)


class Abort(Struct):
    pass


class BitmapAdd(Struct):
    node: str
    name: str
    granularity: UInt32 | None = None
    persistent: bool | None = None
    disabled: bool | None = None


class Action(Union, tag="type", tag_enum="SampleAction"):
    pass


Action.add_branch("abort", Abort, wrap="data")
Action.add_branch("block-dirty-bitmap-add", BitmapAdd, wrap="data")


class CompletionMode(Enum):
    INDIVIDUAL = "individual"
    GROUPED = "grouped"


class TransactionProperties(Struct):
    completion_mode: CompletionMode | None = None


class Bitmap(Struct):
    node: str
    name: str


BitmapOrStr: TypeAlias = Annotated[Bitmap | str, Alternate("BlockDirtyBitmapOrStr", local=str, external=Bitmap)]


class OnError(Enum):
    REPORT = "report"
    IGNORE = "ignore"
    ENOSPC = "enospc"
    STOP = "stop"
    AUTO = "auto"


class Capability(Enum):
    OOB = "oob"


class Version(Struct):
    qemu: VersionTriple
    package: str


class VersionTriple(Struct):
    major: int
    minor: int
    micro: int


class Tiny(Struct):
    """Not in QEMU: for what no command has."""

    number: float | None = None
    byte: UInt8 | None = None
    size: Size | None = None
    anything: Any = None


@registry.command(name="block_resize", since="0.14")
def block_resize(engine: Any, *, device: str | None = None, node_name: str | None = None, size: int) -> None:
    """Change the length of a node.

    size: new length in bytes,
        of the guest's disk
    """


@registry.command(boxed=True)
def blockdev_add(engine: Any, arg: Options) -> None:
    """Add a node."""


@registry.command(features=["allow-write-only-overlay"])
def blockdev_snapshot(engine: Any, *, node: str, overlay: str) -> None:
    """Put *overlay* on top of *node*."""


@registry.command()
def blockdev_create(engine: Any, *, job_id: str, options: CreateOptions) -> None:
    """Make an image."""


@registry.command()
def block_stream(
    engine: Any,
    *,
    job_id: str | None = None,
    device: str,
    base: str | None = None,
    base_node: str | None = None,
    backing_file: str | None = None,
    bottom: str | None = None,
    speed: int | None = None,
    on_error: OnError | None = None,
    filter_node_name: str | None = None,
    auto_finalize: bool | None = None,
    auto_dismiss: bool | None = None,
) -> None:
    """Copy data from the backing chain."""


@registry.command()
def block_dirty_bitmap_merge(engine: Any, *, node: str, target: str, bitmaps: list[BitmapOrStr]) -> None:
    """Add bitmaps to a bitmap."""


@registry.command()
def transaction(engine: Any, *, actions: list[Action], properties: TransactionProperties | None = None) -> None:
    """Do all or nothing."""


@registry.command()
def nbd_server_start(
    engine: Any,
    *,
    addr: AddressLegacy,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: UInt32 | None = None,
) -> None:
    """Serve."""


@registry.command()
def query_version(engine: Any) -> Version:
    """Tell the version."""
    return Version(qemu=VersionTriple(major=7, minor=2, micro=22), package="x")


@registry.command(name="qmp_capabilities", allow_preconfig=True)
def capabilities(engine: Any, *, enable: list[Capability] | None = None) -> None:
    """Leave negotiation."""


@registry.command()
def query_block_jobs(engine: Any) -> list[dict[str, Any]]:
    """List jobs."""
    return []


@registry.event
class BlockWriteThreshold(Struct):
    node_name: str
    amount_exceeded: UInt64
    write_threshold: UInt64
