"""Guest devices, their media and the run state: device_add, device_del, eject, change, stop, cont, info status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import GenericError
from engine.monitor.hmp.registry import hmp, info
from engine.qapi.opts import parse_opts

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor

_READ_ONLY_MODES = ("retain", "read-only", "read-write")


@hmp(
    "device_add",
    args="device:S?",
    params="driver[,prop=value][,...]",
    help="add device, like -device on the command line",
)
async def _device_add(monitor: Monitor, args: dict[str, Any]) -> None:
    from engine.devices.models import help_for

    text = args.get("device") or ""
    found = help_for(text)
    if found is not None:
        monitor.print(found)
        return
    await monitor.engine.run_command("device_add", dict(parse_opts(text, implied_key="driver")))


@hmp("device_del", args="id:s", params="device", help="remove device")
async def _device_del(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("device_del", id=args["id"])


@hmp("eject", args="force:-f,device:B", params="[-f] device", help="eject a removable medium (use -f to force it)")
async def _eject(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("eject", device=args["device"], force=args.get("force", False))


@hmp(
    "change",
    args="device:B,force:-f,target:F,arg:s?,read-only-mode:s?",
    params="device [-f] filename [format [read-only-mode]]",
    help="change a removable medium, optional format, use -f to force the operation",
)
async def _change(monitor: Monitor, args: dict[str, Any]) -> None:
    if args["device"] == "vnc":
        monitor.print("Expected 'password' after 'vnc'\n")
        return
    mode = args.get("read-only-mode")
    if mode is not None and mode not in _READ_ONLY_MODES:
        raise GenericError(f"invalid parameter value: {mode}")
    await monitor.qmp(
        "blockdev-change-medium",
        device=args["device"],
        filename=args["target"],
        format=args.get("arg"),
        force=args.get("force", False),
        read_only_mode=mode,
    )


@hmp("stop|s", help="stop emulation")
async def _stop(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("stop")


@hmp("cont|c", help="resume emulation")
async def _cont(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("cont")


@hmp("system_reset", help="reset the system")
async def _system_reset(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("system_reset")


@info("status", help="show the current VM status (running|paused)")
async def _info_status(monitor: Monitor, args: dict[str, Any]) -> None:
    found = await monitor.qmp("query-status")
    word = "running" if found["running"] else "paused"
    status = f" ({found['status']})" if not found["running"] and found["status"] != "paused" else ""
    monitor.print(f"VM status: {word}{status}\n")
