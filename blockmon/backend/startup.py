"""Start-up options that bring an engine into its first state, strictly in the order given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from engine.devices.drive_options import DriveOptions
    from engine.engine import Engine
    from engine.monitor.server import Monitors

log = logging.getLogger("blockmon")


async def start_up(engine: Engine, options: CommonOptions, announce: Callable[[str], None] = log.info) -> None:
    """Carry out ``options.startup``. Errors: StartupError naming the option at fault.

    announce: takes sentences for the person at the terminal; called on the engine's thread.
    """
    monitors: Monitors | None = None
    # Descriptors come first, as in QEMU: whatever comes later may open them.
    for text in options.add_fd:
        await _done(engine, "--add-fd", text, _add_fd(engine, text))
    for option, text in _in_order(options.startup):
        if option not in _WORK and monitors is None:
            from engine.monitor.server import Monitors

            monitors = Monitors(engine, announce)
        if option in _WORK:
            work = _WORK[option](engine, text, announce)
        else:
            assert monitors is not None
            work = _monitor(monitors, option, text)
        await _done(engine, option, text, work)


async def _done(engine: Engine, option: str, text: str, work: Coroutine[Any, Any, None]) -> None:
    """Do *work* on the control plane. Errors: StartupError naming the option."""
    from engine.errors import QMPError

    try:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, engine.control.loop))
    except QMPError as exc:
        message = exc.desc if exc.hint is None else f"{exc.desc}\n{exc.hint}"
        raise StartupError(f"{option} {text}", message) from exc


def option_help(option: str, text: str) -> str:
    """What the option prints instead of doing anything, '' when it does not ask for that. Errors: StartupError."""
    from engine.errors import QMPError

    try:
        return _help(option, text)
    except QMPError as exc:
        raise StartupError(f"{option} {text}", exc.desc) from exc


def _help(option: str, text: str) -> str:
    if option == "--object":
        from engine.objects.text import read_options

        found = read_options(text)
        return found if isinstance(found, str) else ""
    import engine.drivers  # noqa: F401  (the list of formats)
    from engine.devices.drive import format_list
    from engine.devices.models import help_for

    return (format_list(text) if option == "--drive" else help_for(text)) or ""


def _in_order(startup: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """As given, but guest devices come when all that they may stand on is there, as in QEMU."""
    last = max(
        (i for i, (option, _) in enumerate(startup) if option in ("--object", "--blockdev", "--drive")), default=0
    )
    early = [entry for entry in startup[: last + 1] if entry[0] != "--device"]
    late = [entry for entry in startup[: last + 1] if entry[0] == "--device"]
    return early + late + startup[last + 1 :]


async def _add_fd(engine: Engine, text: str) -> None:
    from engine.descriptors.fdsets import inherit
    from engine.errors import GenericError
    from engine.qapi.opts import option_number, parse_opts

    given = dict(parse_opts(text, None))
    for name in given:
        if name not in ("fd", "set", "opaque"):
            raise GenericError(f"Invalid parameter '{name}'")
    numbers = [(option_number(name, given[name]) if name in given else None) for name in ("fd", "set")]
    # A minus sign wraps in these numbers.
    fd, number = (each - (1 << 64) if each is not None and each >> 63 else each for each in numbers)
    inherit(engine.graph.fdsets, fd, number, given.get("opaque"))


async def _blockdev(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.graph.options import BlockdevOptions
    from engine.qapi import to_wire
    from engine.qapi.keyval import from_option

    await engine.run_command("blockdev-add", to_wire(from_option(BlockdevOptions, text, "driver")))


async def _object(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.objects.text import read_options
    from engine.qapi import to_wire

    options = read_options(text)
    if isinstance(options, str):
        raise StartupError(f"--object {text}", f"this is a question for help\n{options}")
    await engine.run_command("object-add", to_wire(options))


async def _nbd_server(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.commands.exports import NbdServerOptions, start_nbd_server
    from engine.qapi import to_wire
    from engine.qapi.keyval import from_option
    from engine.sockets.addresses import address_of

    options: NbdServerOptions = from_option(NbdServerOptions, text)
    work = start_nbd_server(
        engine,
        address_of(options.addr),
        options.tls_creds,
        options.tls_authz,
        options.max_connections,
        inherited=True,
    )
    # The command has its address in an older form.
    said = to_wire(options)
    address = said["addr"]
    said["addr"] = {"type": address.pop("type"), "data": address}
    await engine.observed("nbd-server-start", said, work)


async def _export(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.exports.options import BlockExportOptions
    from engine.qapi import to_wire
    from engine.qapi.keyval import from_option

    await engine.run_command("block-export-add", to_wire(from_option(BlockExportOptions, text, "type")))


async def _drive(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.devices.drive_options import Interface

    options = engine.drives.parse(text)
    work = _add_drive(engine, text, options, announce)
    # Only drives without a device of their own can also be added later.
    if options.interface is Interface.NONE:
        quoted = text.replace("\\", r"\\").replace('"', r"\"")
        await engine.observed("human-monitor-command", {"command-line": f'drive_add 0 "{quoted}"'}, work)
    else:
        await work


async def _add_drive(engine: Engine, text: str, options: DriveOptions, announce: Callable[[str], None]) -> str:
    backend = engine.drives.add(options)
    for warning in options.warnings:
        announce(f"--drive {text}: warning: {warning}")
    try:
        engine.drives.attach_device(options)
    except BaseException:
        engine.drives.discard(backend)
        raise
    return ""


async def _device(engine: Engine, text: str, announce: Callable[[str], None]) -> None:
    from engine.qapi.keyval import parse_option
    from engine.qapi.opts import parse_opts

    # JSON, or the older syntax (not dotted keys), as in QEMU.
    properties = parse_option(text)[0] if text.startswith("{") else dict(parse_opts(text, "driver"))
    await engine.run_command("device_add", properties)


_Work = Callable[["Engine", str, Callable[[str], None]], Coroutine[Any, Any, None]]
_WORK: dict[str, _Work] = {
    "--blockdev": _blockdev,
    "--object": _object,
    "--drive": _drive,
    "--device": _device,
    "--nbd-server": _nbd_server,
    "--export": _export,
}
"""What the options do that need no monitor."""


async def _monitor(monitors: Monitors, option: str, text: str) -> Any:
    if option == "--chardev":
        await monitors.add_chardev(text)
    elif option == "--monitor":
        monitors.add_monitor(text)
    else:
        await monitors.listen({"--qmp": "control", "--hmp": "readline"}[option], text)
