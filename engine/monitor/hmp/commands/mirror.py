"""drive_mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "drive_mirror",
    args="reuse:-n,full:-f,device:B,target:s,format:s?",
    params="[-n] [-f] device target [format]",
    help="initiates live storage\n"
    "\t\t\tmigration for a device. The device's contents are\n"
    "\t\t\tcopied to the new image file, including data that\n"
    "\t\t\tis written after the command is started.\n"
    "\t\t\tThe -n flag requests QEMU to reuse the image found\n"
    "\t\t\tin new-image-file, instead of recreating it from scratch.\n"
    "\t\t\tThe -f flag requests QEMU to copy the whole disk,\n"
    "\t\t\tso that the result does not need a backing file.\n"
    "\t\t\t",
)
async def _drive_mirror(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp(
        "drive-mirror",
        device=args["device"],
        target=args["target"],
        format=args.get("format"),
        sync="full" if args.get("full") else "top",
        mode="existing" if args.get("reuse") else "absolute-paths",
        unmap=True,
    )
