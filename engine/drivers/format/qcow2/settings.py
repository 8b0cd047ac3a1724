"""What the options of a qcow2 node come to: cache sizes, overlap mask, discard policy. Rules and texts are QEMU's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.drivers.format.qcow2.header import Compatible, Header
from engine.drivers.format.qcow2.overlap import Area
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2

MIN_L2_SLICES: Final = 2
MIN_REFCOUNT_BLOCKS: Final = 4
DEFAULT_L2_CACHE: Final = 32 << 20
DEFAULT_L2_ENTRY: Final = 4096
DEFAULT_CLEAN_INTERVAL: Final = 600
_CACHE_SIZES: Final = ("cache-size", "l2-cache-size", "refcount-cache-size", "l2-cache-entry-size")
_INT_MAX: Final = (1 << 31) - 1
_UINT_MAX: Final = (1 << 32) - 1

_FLAGS: Final = (
    ("main_header", Area.MAIN_HEADER),
    ("active_l1", Area.ACTIVE_L1),
    ("active_l2", Area.ACTIVE_L2),
    ("refcount_table", Area.REFCOUNT_TABLE),
    ("refcount_block", Area.REFCOUNT_BLOCK),
    ("snapshot_table", Area.SNAPSHOT_TABLE),
    ("inactive_l1", Area.INACTIVE_L1),
    ("inactive_l2", Area.INACTIVE_L2),
    ("bitmap_directory", Area.BITMAP_DIRECTORY),
)
_TEMPLATES: Final = {"none": 0, "constant": Area.CONSTANT, "cached": Area.CACHED, "all": Area.ALL}


@dataclass(frozen=True, slots=True)
class Settings:
    """l2_slices of l2_slice_size bytes and refcount_blocks (one cluster each) are cached; clean_interval in seconds,
    0 = never.
    """

    l2_slices: int
    l2_slice_size: int
    refcount_blocks: int
    clean_interval: int = 0
    lazy_refcounts: bool = False
    overlap: int = int(Area.CACHED)
    discard_request: bool = False
    discard_snapshot: bool = True
    discard_other: bool = False


def from_options(options: BlockdevOptionsQcow2 | None, header: Header, discard_unmap: bool) -> Settings:
    """Settings for an image with *header*. discard_unmap: the node was opened with discard=unmap. Errors:
    GenericError.
    """
    l2_size, entry_size, refcount_size = _cache_sizes(options, header)
    interval = _given(options, "cache_clean_interval", DEFAULT_CLEAN_INTERVAL)
    if not 0 <= interval <= _UINT_MAX:
        raise GenericError("Cache clean interval too big")
    lazy = _given(options, "lazy_refcounts", bool(header.compatible & Compatible.LAZY_REFCOUNTS))
    if lazy and header.version < 3:
        raise GenericError("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
    overlap = _overlap(options)
    encrypt = _given(options, "encrypt", None)
    if encrypt is not None:
        refuse_encryption(encrypt.format)
    return Settings(
        l2_slices=l2_size,
        l2_slice_size=entry_size,
        refcount_blocks=refcount_size,
        clean_interval=interval,
        lazy_refcounts=lazy,
        overlap=overlap,
        discard_request=_given(options, "pass_discard_request", discard_unmap),
        discard_snapshot=_given(options, "pass_discard_snapshot", True),
        discard_other=_given(options, "pass_discard_other", False),
    )


def refuse_encryption(kind: str) -> None:
    """The options ask for encryption, of *kind*, which no image that is open has. Errors: GenericError."""
    raise GenericError(f"No encryption in image header, but options specified format '{kind}'")


def _given(options: Any, name: str, default: Any) -> Any:
    value = getattr(options, name, None)
    return default if value is None else value


def _cache_sizes(options: BlockdevOptionsQcow2 | None, header: Header) -> tuple[int, int, int]:
    """(L2 slices, bytes of a slice, refcount blocks)."""
    cluster_size = header.cluster_size
    max_l2 = -(-header.size // cluster_size) * header.l2_entry_size
    max_l2 = -(-max_l2 // cluster_size) * cluster_size
    min_refcount = MIN_REFCOUNT_BLOCKS * cluster_size

    total = _given(options, "cache_size", None)
    l2_given = _given(options, "l2_cache_size", None)
    refcount_given = _given(options, "refcount_cache_size", None)
    entry_given = _given(options, "l2_cache_entry_size", None)
    sizes = (total, l2_given, refcount_given, entry_given)
    for name, value in zip(_CACHE_SIZES, sizes, strict=True):
        if value is not None and value < 0:
            raise GenericError(f"Parameter '{name}' expects a non-negative number below 2^64")
    l2_setting = DEFAULT_L2_CACHE if l2_given is None else l2_given
    l2 = min(max_l2, l2_setting)
    refcount = refcount_given or 0
    if total is not None:
        if l2_given is not None and refcount_given is not None:
            raise GenericError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
        if l2_given is not None and l2_setting > total:
            raise GenericError("l2-cache-size may not exceed cache-size")
        if refcount > total:
            raise GenericError("refcount-cache-size may not exceed cache-size")
        if l2_given is not None:
            refcount = total - l2
        elif refcount_given is not None:
            l2 = total - refcount
        elif total >= max_l2 + min_refcount:
            l2 = max_l2
            refcount = total - l2
        else:
            refcount = min(total, min_refcount)
            l2 = total - refcount
    entry = cluster_size if entry_given is None else entry_given
    if l2 < max_l2 and entry_given is None:
        entry = min(cluster_size, DEFAULT_L2_ENTRY)
    if not 512 <= entry <= cluster_size or entry & (entry - 1):
        raise GenericError(
            f"L2 cache entry size must be a power of two between 512 and the cluster size ({cluster_size})"
        )
    slices = max(l2 // entry, MIN_L2_SLICES)
    blocks = max(refcount // cluster_size, MIN_REFCOUNT_BLOCKS)
    if slices > _INT_MAX:
        raise GenericError("L2 cache size too big")
    if blocks > _INT_MAX:
        raise GenericError("Refcount cache size too big")
    return slices, entry, blocks


def _overlap(options: BlockdevOptionsQcow2 | None) -> int:
    given = _given(options, "overlap_check", None)
    if given is None:
        return int(Area.CACHED)
    if isinstance(given, str):
        return int(_TEMPLATES[str(given)])
    template = given.template
    mask = int(Area.CACHED) if template is None else int(_TEMPLATES[str(template)])
    for name, area in _FLAGS:
        value = getattr(given, name)
        if value is not None:
            mask = mask | area if value else mask & ~area
    return mask
