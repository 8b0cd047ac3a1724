"""drive_backup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "drive_backup",
    args="reuse:-n,full:-f,compress:-c,device:B,target:s,format:s?",
    params="[-n] [-f] [-c] device target [format]",
    help="initiates a point-in-time\n"
    "\t\t\tcopy for a device. The device's contents are\n"
    "\t\t\tcopied to the new image file, excluding data that\n"
    "\t\t\tis written after the command is started.\n"
    "\t\t\tThe -n flag requests QEMU to reuse the image found\n"
    "\t\t\tin new-image-file, instead of recreating it from scratch.\n"
    "\t\t\tThe -f flag requests QEMU to copy the whole disk,\n"
    "\t\t\tso that the result does not need a backing file.\n"
    "\t\t\tThe -c flag requests QEMU to compress backup data\n"
    "\t\t\t(if the target format supports it).\n"
    "\t\t\t",
)
async def _drive_backup(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp(
        "drive-backup",
        device=args["device"],
        target=args["target"],
        format=args.get("format"),
        sync="full" if args.get("full") else "top",
        mode="existing" if args.get("reuse") else "absolute-paths",
        compress=bool(args.get("compress")),
    )
