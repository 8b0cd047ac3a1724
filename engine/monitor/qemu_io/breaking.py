"""Commands for faults: break, remove_break, resume, wait_break (with blkdebug), sigraise, abort."""

from __future__ import annotations

import errno
import os
import signal

from engine.drivers.filter.blkdebug import BlkdebugDriver
from engine.drivers.filter.blkdebug_rules import EVENTS, BreakRule
from engine.monitor.qemu_io.commands import Call, io_command
from engine.monitor.qemu_io.text import read_number

_UNSUPPORTED = os.strerror(errno.ENOTSUP)
_NOT_FOUND = os.strerror(errno.ENOENT)


def _driver(call: Call) -> BlkdebugDriver | None:
    """The first blkdebug on the way from the node to where its data are."""
    try:
        node = call.backend.node
    except OSError:
        return None
    while not isinstance(node.driver, BlkdebugDriver):
        edge = node.primary
        if edge is None:
            return None
        node = edge.child
    return node.driver


@io_command(
    "break", words=(2, 2), args="event tag", oneline="sets a breakpoint on event and tags the stopped request as tag"
)
def _break(call: Call) -> None:
    event, tag = call.words
    driver = _driver(call)
    if driver is None:
        call.print(f"Could not set breakpoint: {_UNSUPPORTED}\n")
    elif event not in EVENTS:
        call.print(f"Could not set breakpoint: {_NOT_FOUND}\n")
    else:
        driver.rules.add(BreakRule(event, tag))


@io_command("remove_break", words=(1, 1), args="tag", oneline="remove a breakpoint by tag")
def _remove_break(call: Call) -> None:
    (tag,) = call.words
    driver = _driver(call)
    if driver is None:
        call.print(f"Could not remove breakpoint {tag}: {_UNSUPPORTED}\n")
        return
    found = driver.rules.remove_break(tag)
    call.print(driver.rules.said())
    if not found:
        call.print(f"Could not remove breakpoint {tag}: {_NOT_FOUND}\n")


@io_command("resume", words=(1, 1), args="tag", oneline="resumes the request tagged as tag")
def _resume(call: Call) -> None:
    driver = _driver(call)
    if driver is None:
        call.print(f"Could not resume request: {_UNSUPPORTED}\n")
        return
    found = driver.rules.resume(call.words[0])
    call.print(driver.rules.said())
    if not found:
        call.print(f"Could not resume request: {_NOT_FOUND}\n")


@io_command("wait_break", words=(1, 1), args="tag", oneline="waits for the suspension of a request")
def _wait_break(call: Call) -> None:
    driver = _driver(call)
    if driver is None:
        # QEMU waits for ever here, and its monitor with it.
        call.print(f"Could not wait for the request: {_UNSUPPORTED}\n")
        return
    driver.rules.wait_break(call.words[0])
    call.print(driver.rules.said())


@io_command(
    "sigraise",
    words=(1, 1),
    args="signal",
    oneline="raises a signal",
    help=" raises the given signal\n\n Example:\n 'sigraise 15' - raises SIGTERM\n\n"
    ' Invokes raise(signal), where "signal" is the mandatory integer argument\n given to sigraise.\n',
)
def _sigraise(call: Call) -> None:
    number = read_number(call.words[0])
    if number > signal.NSIG:
        call.print(f"signal argument '{call.words[0]}' is too large to be a valid signal\n")
        return
    os.kill(os.getpid(), number)


@io_command("abort", words=(0, 0), oneline="simulate a program crash using abort(3)")
def _abort(call: Call) -> None:
    os.abort()
