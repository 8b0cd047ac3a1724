"""What QEMU checks when a device is realized, with its texts: sizes, geometry, queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.devices.models import Kind, Model
from engine.errors import GenericError

NO_GRANULARITY = (1 << 32) - 1
_MAX_SECTORS = 4194303
_QUEUE_MAX = 1024
_AUTO_QUEUES = (1 << 16) - 1
_AUTO_SCSI_QUEUES = (1 << 32) - 1


def check_controller(values: Mapping[str, Any]) -> None:
    """The properties of virtio-scsi. Errors: GenericError."""
    _check_modes(values)
    queues, size = values["num_queues"], values["virtqueue_size"]
    if queues != _AUTO_SCSI_QUEUES and not 0 < queues < _QUEUE_MAX - 2:
        raise GenericError(
            f"Invalid number of queues (= {queues}), must be a positive integer less than {_QUEUE_MAX - 2}."
        )
    if size <= 2:
        raise GenericError(f"invalid virtqueue_size property (= {size}), must be > 2")


def check_queues(values: Mapping[str, Any]) -> None:
    """The queues of virtio-blk. Errors: GenericError."""
    _check_modes(values)
    queues, size = values["num-queues"], values["queue-size"]
    if not queues:
        raise GenericError("num-queues property must be larger than 0")
    if queues != _AUTO_QUEUES and queues > _QUEUE_MAX:
        raise GenericError(f"num-queues property must be at most {_QUEUE_MAX}")  # QEMU 7.2 aborts here
    if size <= 2:
        raise GenericError(f"invalid queue-size property ({size}), must be > 2")
    if size & (size - 1) or size > _QUEUE_MAX:
        raise GenericError(f"invalid queue-size property ({size}), must be a power of 2 (max {_QUEUE_MAX})")


def _check_modes(values: Mapping[str, Any]) -> None:
    if values["disable-legacy"] == "on" and values["disable-modern"]:
        raise GenericError("device cannot work as neither modern nor legacy mode is enabled")
    if values.get("scsi"):
        raise GenericError("Please set scsi=off for virtio-blk devices in order to use virtio 1.0")


def check_virtio_limits(values: Mapping[str, Any]) -> None:
    """How much one discard or write-zeroes request may cover. Errors: GenericError."""
    for name in ("max-discard-sectors", "max-write-zeroes-sectors"):
        if not 0 < values[name] <= _MAX_SECTORS:
            raise GenericError(f"invalid {name} property ({values[name]}), must be between 1 and {_MAX_SECTORS}")


def check_geometry(model: Model, values: Mapping[str, Any]) -> None:
    """Cylinders, heads and sectors, where given. Errors: GenericError."""
    given = [values.get(name, 0) for name in ("cyls", "heads", "secs")]
    if not any(given):
        return
    heads = 16 if model.bus == "IDE" else 255
    for name, value, most in zip(("cyls", "heads", "secs"), given, (65535, heads, 255), strict=True):
        if not 1 <= value <= most:
            raise GenericError(f"{name} must be between 1 and {most}")


def check_block_sizes(model: Model, values: dict[str, Any]) -> None:
    """Block sizes and what has to be a multiple of them; the sizes not given are filled in. Errors: GenericError."""
    logical = values["logical_block_size"] = values["logical_block_size"] or 512
    physical = values["physical_block_size"] = values["physical_block_size"] or 512
    if logical > physical:
        raise GenericError("logical_block_size > physical_block_size not supported")
    if values["min_io_size"] % logical:
        raise GenericError("min_io_size must be a multiple of logical_block_size")
    if values["min_io_size"] // logical > 65535:
        raise GenericError("min_io_size must not exceed 65535 logical blocks")
    if values["opt_io_size"] % logical:
        raise GenericError("opt_io_size must be a multiple of logical_block_size")
    granularity = values["discard_granularity"]
    if granularity != NO_GRANULARITY and granularity % logical:
        raise GenericError("discard_granularity must be a multiple of logical_block_size")
    if model.bus == "IDE" and logical != 512:
        raise GenericError("logical_block_size must be 512 for IDE")
    if model.kind is Kind.FLOPPY and (logical != 512 or physical != 512):
        raise GenericError("Physical and logical block size must be 512 for floppy")
