"""Commands that start and steer block jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "block_stream",
    args="device:B,speed:o?,base:s?",
    params="device [speed [base]]",
    help="copy data from a backing file into a block device",
)
async def _block_stream(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp(
        "block-stream",
        job_id=args["device"],
        device=args["device"],
        speed=args.get("speed", 0),
        base=args.get("base"),
        on_error="report",
    )


@hmp(
    "block_job_set_speed",
    args="device:B,speed:o",
    params="device speed",
    help="set maximum speed for a background block operation",
)
async def _block_job_set_speed(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("block-job-set-speed", device=args["device"], speed=args["speed"])


@hmp(
    "block_job_cancel",
    args="force:-f,device:B",
    params="[-f] device",
    help="stop an active background block operation (use -f\n"
    "\t\t\t if you want to abort the operation immediately\n"
    "\t\t\t instead of keep running until data is in sync)",
)
async def _block_job_cancel(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("block-job-cancel", device=args["device"], force=args.get("force", False))


@hmp("block_job_complete", args="device:B", params="device", help="stop an active background block operation")
async def _block_job_complete(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("block-job-complete", device=args["device"])


@hmp("block_job_pause", args="device:B", params="device", help="pause an active background block operation")
async def _block_job_pause(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("block-job-pause", device=args["device"])


@hmp("block_job_resume", args="device:B", params="device", help="resume a paused background block operation")
async def _block_job_resume(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("block-job-resume", device=args["device"])
