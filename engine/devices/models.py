"""The models of guest devices: name, bus, properties. The facts are those of QEMU 7.2's system emulator.

Properties of the hardware that a simulated guest cannot notice (PCI capabilities, queue layout, identification pages)
are read and checked like the others, and kept with the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from engine.devices.properties import UNSET, Property
from engine.errors import GenericError
from engine.qapi.opts import parse_opts

_NOTES: Final = {
    "block-size": "A power of two between 512 B and 2 MiB",
    "drive": "Node name or ID of a block device to use as a backend",
    "addr": "Slot and optional function number, example: 06.0 or 06",
    "on-off": "on/off",
    "OnOffAuto": "on/off/auto",
    "BlockdevOnError": "Error handling policy, report/ignore/enospc/stop/auto",
    "FdcDriveType": "FDC drive type, 144/288/120/none/auto",
    "BiosAtaTranslation": "Logical CHS translation algorithm, auto/none/lba/large/rechs",
}
_TYPES: Final = {
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "i32": "int32",
    "auto": "OnOffAuto",
    "on-error": "BlockdevOnError",
}


def _properties(lines: str) -> list[Property]:
    """Read a table, ``NAME TYPE [DEFAULT]`` a line. Type ``bit`` is a bool whose help says on/off."""
    found = []
    for line in lines.split("\n"):
        words = line.split()
        if not words:
            continue
        name, kind = words[:2]
        default: Any = words[2] if len(words) > 2 else UNSET
        note = _NOTES["on-off"] if kind == "bit" else ""
        if name in ("logical_block_size", "physical_block_size"):
            note = _NOTES["block-size"]
        elif name in ("drive", "addr"):
            note = _NOTES[name]
        kind = _TYPES.get(kind, "bool" if kind == "bit" else kind)
        note = note or _NOTES.get(kind, "")
        if default is not UNSET:
            if kind == "bool":
                default = default == "true"
            elif kind not in ("str", "OnOffAuto", "BlockdevOnError", "FdcDriveType", "BiosAtaTranslation"):
                default = int(default)
        found.append(Property(name, kind, default, note))
    return found


_BLOCK: Final = _properties("""
    drive str
    backend_defaults auto auto
    logical_block_size size 0
    physical_block_size size 0
    min_io_size size 0
    opt_io_size size 0
    discard_granularity size 4294967295
    write-cache auto auto
    share-rw bool false
    account-invalid auto auto
    account-failed auto auto
""")
_ERRORS: Final = _properties("""
    rerror on-error auto
    werror on-error auto
""")
_GEOMETRY: Final = _properties("""
    cyls u32 0
    heads u32 0
    secs u32 0
    lcyls u32 0
    lheads u32 0
    lsecs u32 0
""")
_BOOT: Final = _properties("bootindex i32")
_SERIAL: Final = _properties("serial str")
_PCI: Final = _properties("""
    acpi-index u32 0
    addr i32 -1
    failover_pair_id str
    multifunction bit false
    rombar u32 1
    romfile str
    romsize u32 4294967295
    x-pcie-extcap-init bit true
    x-pcie-lnksta-dllla bit true
""")
_VIRTIO_PCI: Final = _properties("""
    aer bit false
    any_layout bit true
    ats bit false
    disable-legacy auto auto
    disable-modern bool false
    event_idx bit true
    indirect_desc bit true
    ioeventfd bit true
    iommu_platform bit false
    iothread link<iothread>
    migrate-extra bit true
    modern-pio-notify bit false
    notify_on_empty bit true
    packed bit false
    page-per-vq bit false
    queue_reset bit true
    use-disabled-flag bool true
    use-started bool true
    vectors u32 4294967295
    virtio-pci-bus-master-bug-migration bit false
    x-ats-page-aligned bit true
    x-disable-legacy-check bool false
    x-disable-pcie bit false
    x-ignore-backend-features bool false
    x-pcie-deverr-init bit true
    x-pcie-flr-init bit true
    x-pcie-lnkctl-init bit true
    x-pcie-pm-init bit true
""")
_VIRTIO_BLK: Final = _properties("""
    class u32 0
    config-wce bit true
    discard bit true
    max-discard-sectors u32 4194303
    max-write-zeroes-sectors u32 4194303
    num-queues u16 65535
    queue-size u16 256
    report-discard-granularity bool true
    request-merging bit true
    scsi bit false
    seg-max-adjust bool true
    virtio-backend child<virtio-blk-device>
    write-zeroes bit true
    x-enable-wce-if-config-wce bool true
""")
_VIRTIO_SCSI: Final = _properties("""
    cmd_per_lun u32 128
    hotplug bit true
    max_sectors u32 65535
    num_queues u32 4294967295
    param_change bit true
    seg_max_adjust bool true
    virtio-backend child<virtio-scsi-device>
    virtqueue_size u32 256
""")
_SCSI: Final = _properties("""
    channel u32 0
    device_id str
    lun u32 4294967295
    max_io_size u64 2147483647
    port_index u16 0
    port_wwn u64 0
    product str
    quirk_mode_page_vendor_specific_apple bit false
    scsi-id u32 4294967295
    scsi_version i32 5
    vendor str
    ver str
    wwn u64 0
""")
_SCSI_HD: Final = _properties("""
    dpofua bit false
    max_unmap_size u64 1073741824
    removable bit false
    rotation_rate u16 0
""")
_SCSI_CD: Final = _properties("""
    quirk_mode_page_apple_vendor bit false
    quirk_mode_page_truncated bit false
    quirk_mode_sense_rom_use_dbd bit false
""")
_IDE: Final = _properties("""
    model str
    unit u32 4294967295
    ver str
    wwn u64 0
""")
_IDE_HD: Final = _properties("""
    bios-chs-trans BiosAtaTranslation auto
    rotation_rate u16 0
""")
_NVME: Final = _properties("""
    aer_max_queued u32 64
    aerl u8 3
    cmb_size_mb u32 0
    ioeventfd bool false
    max_ioqpairs u32 64
    mdts u8 7
    msix-exclusive-bar bool false
    msix_qsize u16 65
    num_queues u32 0
    pmrdev link<memory-backend>
    smart_critical_warning u8
    sriov_max_vfs u8 0
    sriov_max_vi_per_vf u8 0
    sriov_max_vq_per_vf u8 0
    sriov_vi_flexible u16 0
    sriov_vq_flexible u16 0
    subsys link<nvme-subsys>
    use-intel-id bool false
    vsl u8 7
    zoned.auto_transition bool true
    zoned.zasl u8 0
""")
_XHCI: Final = _properties("""
    host link<device>
    p2 u32 4
    p3 u32 4
    streams bit true
    xhci-core child<base-xhci>
""")
_USB_STORAGE: Final = _properties("""
    attached bool
    commandlog bool false
    msos-desc bit true
    pcap str
    port str
    removable bool false
""")
_FLOPPY: Final = _properties("""
    drive-type FdcDriveType auto
    unit u32 4294967295
""")


class Kind(Enum):
    """What a model is to the block layer."""

    DISK = "disk"
    CDROM = "cdrom"
    FLOPPY = "floppy"
    CONTROLLER = "controller"


@dataclass(frozen=True)
class Model:
    """A model that can be added.

    name: as QEMU's table has it. bus: the type of bus it plugs into. alias: another name. kind: what it is to the
    block layer. category: where the table has it. inner: model of the part that holds most properties, for messages.
    part: path of the part that does the work, behind the device's own; ``{bus}`` is the name of a bus. gives: type of
    the bus it brings. needs_drive: whether it cannot be empty.
    """

    name: str
    bus: str
    kind: Kind
    tables: Sequence[list[Property]]
    desc: str = ""
    alias: str = ""
    inner: str = ""
    part: str = ""
    gives: str = ""
    category: str = "Storage"
    needs_drive: bool = True
    properties: dict[str, Property] = field(init=False)

    def __post_init__(self) -> None:
        listed = sorted((prop for table in self.tables for prop in table), key=lambda prop: f"{prop.name}=")
        object.__setattr__(self, "properties", {prop.name: prop for prop in listed})

    @property
    def stops(self) -> bool:
        """Whether rerror and werror exist."""
        return "werror" in self.properties

    @property
    def is_virtio(self) -> bool:
        return self.inner.startswith("virtio")

    def owner_of(self, name: str) -> str:
        """The model that messages about the property *name* name."""
        outer = {prop.name for prop in (*_PCI, *_VIRTIO_PCI)}
        return self.inner if self.inner and name not in outer else self.name

    def table_line(self) -> str:
        """As ``-device help`` shows it."""
        alias = f', alias "{self.alias}"' if self.alias else ""
        desc = f', desc "{self.desc}"' if self.desc else ""
        return f'name "{self.name}", bus {self.bus}{alias}{desc}'

    def help_text(self) -> str:
        """As ``-device MODEL,help`` shows it."""
        return "\n".join([f"{self.name} options:", *(prop.help_line() for prop in self.properties.values())]) + "\n"


def _virtio_blk(name: str, alias: str = "") -> Model:
    tables = (_BLOCK, _ERRORS, _GEOMETRY, _BOOT, _SERIAL, _PCI, _VIRTIO_PCI, _VIRTIO_BLK)
    return Model(name, "PCI", Kind.DISK, tables, alias=alias, inner="virtio-blk-device", part="virtio-backend")


def _virtio_scsi(name: str, alias: str = "") -> Model:
    tables = (_PCI, _VIRTIO_PCI, _VIRTIO_SCSI)
    inner = "virtio-scsi-device"
    return Model(name, "PCI", Kind.CONTROLLER, tables, alias=alias, inner=inner, part="virtio-backend", gives="SCSI")


_ALL: Final = (
    Model("qemu-xhci", "PCI", Kind.CONTROLLER, (_PCI, _XHCI), gives="usb-bus", category="USB"),
    Model("floppy", "floppy-bus", Kind.FLOPPY, (_BLOCK, _FLOPPY), "virtual floppy drive", needs_drive=False),
    Model(
        "ide-cd", "IDE", Kind.CDROM, (_BLOCK, _ERRORS, _BOOT, _SERIAL, _IDE), "virtual IDE CD-ROM", needs_drive=False
    ),
    Model("ide-hd", "IDE", Kind.DISK, (_BLOCK, _ERRORS, _GEOMETRY, _BOOT, _SERIAL, _IDE, _IDE_HD), "virtual IDE disk"),
    Model(
        "scsi-cd",
        "SCSI",
        Kind.CDROM,
        (_BLOCK, _ERRORS, _BOOT, _SERIAL, _SCSI, _SCSI_CD),
        "virtual SCSI CD-ROM",
        needs_drive=False,
    ),
    Model(
        "scsi-hd", "SCSI", Kind.DISK, (_BLOCK, _ERRORS, _GEOMETRY, _BOOT, _SERIAL, _SCSI, _SCSI_HD), "virtual SCSI disk"
    ),
    Model("nvme", "PCI", Kind.DISK, (_BLOCK, _BOOT, _SERIAL, _PCI, _NVME), "Non-Volatile Memory Express"),
    Model("usb-storage", "usb-bus", Kind.DISK, (_BLOCK, _ERRORS, _BOOT, _SERIAL, _USB_STORAGE), part="{bus}/legacy[0]"),
    _virtio_blk("virtio-blk-pci", "virtio-blk"),
    _virtio_scsi("virtio-scsi-pci", "virtio-scsi"),
)
MODELS: Final = {model.name: model for model in _ALL}
"""Every model by its name."""


def find_model(name: str) -> Model | None:
    """The model called *name*, perhaps by its alias."""
    return MODELS.get(name) or next((model for model in _ALL if model.alias and model.alias == name), None)


def table_text() -> str:
    """What ``--device help`` prints: every model, by category."""
    parts = []
    for category in dict.fromkeys(model.category for model in _ALL):
        models = sorted((model for model in _ALL if model.category == category), key=lambda model: model.name)
        parts.append("\n".join([f"{category} devices:", *(model.table_line() for model in models)]) + "\n")
    return "\n".join(parts)


def help_for(text: str) -> str | None:
    """The help that an option or an HMP line asks for: ``help``, ``MODEL,help``; None when it asks for none.

    Errors: GenericError.
    """
    if text.startswith("{"):
        return None
    given = dict(parse_opts(text, implied_key="driver"))
    driver = given.get("driver")
    if driver is None:
        return None
    if driver in ("help", "?"):
        return table_text()
    if "help" not in given and "?" not in given:
        return None
    model = find_model(driver)
    if model is None:
        raise GenericError(f"'{driver}' is not a valid device model name")
    return model.help_text()
