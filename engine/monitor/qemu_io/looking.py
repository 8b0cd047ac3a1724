"""Commands that tell about an image: alloc, map, length, info, help."""

from __future__ import annotations

from engine.errors import os_error_text
from engine.graph.driver import Status
from engine.monitor.hmp.image_text import specific_text
from engine.monitor.qemu_io.commands import Call, all_commands, find, io_command
from engine.monitor.qemu_io.text import amount, read_number
from engine.qapi import to_wire


def _is_allocated(call: Call, offset: int, length: int) -> tuple[bool, int]:
    """(whether this layer has it, for how many bytes)."""
    extent = call.backend.block_status(offset, length, False)
    # Behind the end is the rest of the last sector, which nobody else has.
    return bool(extent.flags & Status.ALLOCATED) or offset >= call.backend.node.length, extent.length


@io_command("alloc", "a", words=(1, 2), args="offset [count]", oneline="checks if offset is allocated in the file")
def _alloc(call: Call) -> None:
    start = read_number(call.words[0])
    length = read_number(call.words[1]) if len(call.words) > 1 else 512
    allocated, offset = 0, start
    try:
        end = min(start + length, call.backend.length)
        while offset < end:
            found, run = _is_allocated(call, offset, end - offset)
            offset += run
            if found:
                allocated += run
    except OSError as exc:
        call.print(f"is_allocated failed: {os_error_text(exc)}\n")
        return
    call.print(f"{allocated}/{offset - start} bytes allocated at offset {amount(start)}\n")


@io_command("map", words=(0, 0), oneline="prints the allocated areas of a file")
def _map(call: Call) -> None:
    try:
        offset, end = 0, call.backend.length
    except OSError as exc:
        call.print(f"Failed to query image length: {os_error_text(exc)}\n")
        return
    try:
        while offset < end:
            found, run = _is_allocated(call, offset, end - offset)
            while offset + run < end:
                same, more = _is_allocated(call, offset + run, end - offset - run)
                if same != found:
                    break
                run += more
            what = "    allocated" if found else "not allocated"
            call.print(f"{amount(run)} ({run:#x}) bytes {what} at offset {amount(offset)} ({offset:#x})\n")
            offset += run
    except OSError as exc:
        call.print(f"Failed to get allocation status: {os_error_text(exc)}\n")


@io_command("length", "l", words=(0, 0), oneline="gets the length of the current file")
def _length(call: Call) -> None:
    try:
        call.print(f"{amount(call.backend.length)}\n")
    except OSError as exc:
        call.print(f"getlength: {os_error_text(exc)}\n")


@io_command("info", "i", words=(0, 0), oneline="prints information about the current file")
def _info(call: Call) -> None:
    try:
        driver = call.backend.node.driver
    except OSError as exc:
        call.print(f"{os_error_text(exc)}\n")
        return
    call.print(f"format name: {driver.name}\n")
    if driver.is_protocol:
        call.print(f"format name: {driver.name}\n")
    info = driver.info()
    if info is None:
        return
    call.print(f"cluster size: {amount(info.cluster_size)}\nvm state offset: {amount(info.vm_state_offset)}\n")
    specific = driver.format_specific()
    if specific is not None:
        call.print("Format specific information:\n")
        call.print("".join(specific_text(to_wire(specific[1]))))


@io_command("help", "?", words=(0, 1), args="[command]", oneline="help for one or all commands")
def _help(call: Call) -> None:
    if not call.words:
        for command in all_commands():
            call.print(command.listing())
        call.print("\nUse 'help commandname' for extended help.\n")
        return
    found = find(call.words[0])
    if found is None:
        call.print(f"command {call.words[0]} not found\n")
        return
    call.print(found.listing())
    if found.help:
        call.print(f"\n{found.help}\n")
