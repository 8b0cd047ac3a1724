"""A QMP server elsewhere, by qemu.qmp's client: qemu-storage-daemon, a QEMU, `blockmon serve`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    Runstate,
    StateError,
)
from qemu.qmp.error import ProtocolError
from qemu.qmp.qmp_client import BadReplyError, GreetingError

from blockmon.backend import CommandError, Event, EventCallback
from blockmon.backend.address import AddressError, SshAddress, TcpAddress, UnixAddress, parse_address
from blockmon.backend.connection import Connection, ConnectionLost, ConnectionState
from blockmon.backend.ssh import SshTunnel
from blockmon.options import StartupError

GREETING_TIMEOUT = 10.0
"""Seconds from the first attempt to connect to QMP's greeting."""
SSH_TIMEOUT = 30.0
"""The same through ssh, which has a connection of its own to set up."""
QUERY_SILENCE = 60.0
"""A server that says nothing for so many seconds, although a query waits for its answer, counts as lost."""
COMMAND_SILENCE = 900.0
"""The same while it carries out a command that changes something: HMP's `commit` may take its time."""
PATIENCE = 4.0
"""Seconds without an answer after which that is told."""
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds before the first attempt to get a lost connection back; each wait is twice the last one, up to the second."""
ANSWER_SIZE = 1 << 28
"""Bytes that one answer can have; that of query-named-block-nodes has some 2 KB a node."""

_CLOSED = "the server has closed the connection"
_SILENT = "the server does not answer"

# What the library complains about becomes an error of ours; on the standard error output it would spoil the screen.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class _Client(QMPClient):
    """The library's client, without the text of every message that it prepares for its log; it notes when one came."""

    heard = 0.0

    @property
    def old_qemu(self) -> bool:
        """True for a QEMU, or a tool of its, from before 8.0."""
        version: Any = self.greeting.QMP.version if self.greeting is not None else {}
        try:
            return bool(version["qemu"]["major"] < 8) and "blockmon" not in str(version.get("package"))
        except (KeyError, TypeError):
            return False

    def _cb_inbound(self, msg: Message) -> Message:
        self.heard = asyncio.get_running_loop().time()
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class _Listener(EventListener):
    """Hands every event on; the library's own listeners keep all of them for ever."""

    def __init__(self, take: Callable[[Message], None]) -> None:
        super().__init__()
        self._take = take

    async def put(self, event: Message) -> None:
        self._take(event)


class _Failed(Exception):
    """No connection came about; the text says why."""


class RemoteBackend:
    """
    Backend over a connection to a QMP server. Commands may run at the same time; the server takes them in their order.

    `connection` tells when the connection is lost and back. Errors, besides those of Backend: `ConnectionLost`.
    """

    def __init__(self, address: str) -> None:
        self.title = address
        self.connection = Connection()
        try:
            self._address = parse_address(address)
        except AddressError as error:
            raise StartupError(f"connect {address}", str(error)) from None
        self._client: _Client | None = None
        self._socket: socket.socket | None = None
        self._tunnel: SshTunnel | None = None
        self._callbacks: list[EventCallback] = []
        self._pending: list[Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[object, tuple[float, float]] = {}
        """The commands under way, the oldest first: the silence that each allows the server, and since when it is."""
        self._hush: asyncio.TimerHandle | None = None
        self._guard: asyncio.TimerHandle | None = None
        self._too_silent = False
        self._closed = False
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        try:
            await self._connect()
        except _Failed as failure:
            raise StartupError(f"connect {self.title}", str(failure)) from None
        self._tasks.append(asyncio.create_task(self._live()))

    # -- the connection ----------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """One attempt. Errors: _Failed."""
        client = _Client(readbuflen=ANSWER_SIZE)
        client.events.names = {""}  # the library's own listener gets no event at all
        client.register_listener(_Listener(self._on_event))
        self._too_silent = False
        greeted = False
        limit = SSH_TIMEOUT if isinstance(self._address, SshAddress) else GREETING_TIMEOUT
        try:
            async with asyncio.timeout(limit):
                self._socket = await self._open_socket()
                greeted = True
                await client.connect(self._socket)
        except TimeoutError:
            reason = f"no QMP greeting within {limit:.0f} s" if greeted else f"no connection within {limit:.0f} s"
            if greeted and not isinstance(self._address, TcpAddress):
                reason += "; a QMP monitor talks to one client at a time"
            await self._hang_up()
            raise _Failed(reason) from None
        except ConnectError as error:
            reason = _why_no_session(error.exc)
            if self._tunnel is not None:
                reason = await self._tunnel.complaint() or reason
            await self._hang_up()
            raise _Failed(reason) from None
        except OSError as error:
            await self._hang_up()
            raise _Failed(_text(error)) from None
        except BaseException:
            await self._hang_up()
            raise
        self._client = client
        self.connection.change(ConnectionState(True))

    async def _open_socket(self) -> socket.socket:
        loop, address = asyncio.get_running_loop(), self._address
        if isinstance(address, SshAddress):
            try:
                self._tunnel = SshTunnel(address)
            except FileNotFoundError:
                raise _Failed("there is no ssh command") from None
            if not await self._tunnel.ready():
                raise _Failed(await self._tunnel.complaint())
            try:
                return await _connected(socket.AF_UNIX, self._tunnel.path)
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)  # ssh has made the file, but does not listen yet
                return await _connected(socket.AF_UNIX, self._tunnel.path)
        if isinstance(address, UnixAddress):
            return await _connected(socket.AF_UNIX, address.path)
        failure: OSError | None = None
        for family, _, _, _, place in await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
            try:
                found = await _connected(family, place)
            except OSError as error:
                failure = failure or error
                continue
            # A peer that is gone without a word is found out at last.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        raise failure or OSError(f"'{address.host}' has no address")

    async def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._tunnel is not None:
            tunnel, self._tunnel = self._tunnel, None
            await tunnel.close()

    async def _live(self) -> None:
        """Follow the connection, and get it back when it is lost and somebody wants it back."""
        loop, delay = asyncio.get_running_loop(), 0.0
        while True:
            since = loop.time()
            reason = await self._follow()
            await self._hang_up()
            if loop.time() - since > LAST_RETRY:
                # Else whoever takes the connection and drops it at once would be asked every second for ever.
                delay = 0.0
            delay = delay or FIRST_RETRY
            while True:
                if not self.connection.watched:
                    self.connection.change(ConnectionState(False, reason))
                    return
                self.connection.change(ConnectionState(False, reason, loop.time() + delay))
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY)
                self.connection.change(ConnectionState(False, reason))
                try:
                    await self._connect()
                    break
                except _Failed as failure:
                    reason = str(failure)

    async def _follow(self) -> str:
        """Hand events on until the connection is lost; why it was."""
        client = self._client
        assert client is not None
        while client.runstate == Runstate.RUNNING:
            await client.runstate_changed()
        error = await self._disconnect(client)
        if error is None or isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
            reason = _CLOSED
        elif isinstance(error, ProtocolError):
            # What was under way when it ended, too, is no message.
            reason = "the server broke off, or sent what is no QMP message"
        else:
            reason = _text(error)
        if self._too_silent:
            reason = _SILENT
        elif self._tunnel is not None:
            reason = await self._tunnel.complaint() or reason
        self._client = None
        return reason

    async def _disconnect(self, client: _Client) -> Exception | None:
        """Wait until the client has ended; what it stumbled over."""
        # One task, whoever waits for it: what the library's tasks raise is told to one, and to one that is there.
        if self._ending is None:
            self._ending = asyncio.create_task(client.disconnect())
        ending = self._ending
        await asyncio.wait((ending,))
        self._ending = None
        error = ending.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        return error

    # -- commands ----------------------------------------------------------------------------------------------

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        client = self._client
        if client is None or client.runstate != Runstate.RUNNING:
            self._notice_loss()
            raise ConnectionLost(f"not connected: {self.connection.state.reason}", self._will_retry)
        query = command.startswith(("query-", "x-query-", "x-debug-query-", "x-blockmon-query-"))
        if _tells_nodes(command, arguments):
            await self._beware_of_concluded_streams(client)
        token = object()
        now = asyncio.get_running_loop().time()
        self._waiting[token] = QUERY_SILENCE if query else COMMAND_SILENCE, now
        if len(self._waiting) == 1:
            client.heard = now
        self._watch_silence(client)
        self._watch_patience()
        try:
            return await client.execute(command, arguments)
        except ExecuteError as error:
            raise CommandError(error.error_class, error.error.error.desc) from None
        except StateError:
            # It was lost while the question before this one waited for its answer.
            self._notice_loss()
            raise ConnectionLost(f"not connected: {self.connection.state.reason}", self._will_retry) from None
        except ExecInterruptedError:
            self._notice_loss()
            reason = f"the connection was lost before '{command}' was answered"
            if not query:
                reason += "; it may have been carried out all the same"
            raise ConnectionLost(reason, self._will_retry) from None
        except BadReplyError as error:
            raise CommandError("GenericError", f"the server's answer makes no sense: {error}") from None
        finally:
            del self._waiting[token]
            self._watch_silence(client)
            self._watch_patience()
            if not query:
                self.connection.commanded(command)

    async def _beware_of_concluded_streams(self, client: _Client) -> None:
        """
        QEMU 7.2 crashes when it is asked for its nodes while a concluded stream job waits to be dismissed (observed:
        the job still holds the filter that it has taken out). Looking must not end a guest. Errors: CommandError.
        """
        if client.old_qemu:
            for job in await self.execute("query-block-jobs"):
                # A running one may conclude before the question arrives.
                if job.get("type") == "stream" and (
                    job.get("status") == "concluded" or not job.get("auto-dismiss", True)
                ):
                    raise CommandError(
                        "GenericError",
                        f"stream job '{job['device']}' has to be dismissed first: not sent, as this QEMU can crash",
                    )

    def _notice_loss(self) -> None:
        """Tell of a loss that a command met with before `_live` did, so that nobody takes it for connected."""
        if self.connection.state.connected:
            self.connection.change(ConnectionState(False, _SILENT if self._too_silent else _CLOSED))

    @property
    def _will_retry(self) -> bool:
        return self.connection.watched and not self._closed

    def _watch_silence(self, client: _Client) -> None:
        """Have the silence found out that the commands under way do not allow."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        due = client.heard + max(allowed for allowed, _ in self._waiting.values())
        if loop.time() < due:
            self._guard = loop.call_at(due, self._watch_silence, client)
        elif self._socket is not None and client is self._client:
            self._too_silent = True
            # The client sees the end of the stream, and ends in order.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _watch_patience(self, again: bool = False) -> None:
        """Tell when the oldest command under way has waited for long, and when that is over."""
        if self._hush is not None and not again and self._waiting and self.connection.state.unanswered is None:
            return  # it looks for itself when it is time
        if self._hush is not None:
            self._hush.cancel()
            self._hush = None
        state, now = self.connection.state, asyncio.get_running_loop().time()
        _, oldest = next(iter(self._waiting.values()), (0.0, now))
        since = None
        if now < oldest + PATIENCE:
            if self._waiting:
                self._hush = asyncio.get_running_loop().call_at(oldest + PATIENCE, self._watch_patience, True)
        elif state.unanswered is None:
            since = time.time() - (now - oldest)
        else:
            since = state.unanswered
        if state.connected and since != state.unanswered:
            self.connection.change(ConnectionState(True, unanswered=since))

    # -- events ------------------------------------------------------------------------------------------------

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def _on_event(self, message: Message) -> None:
        # All that have come up to the loop's next round go together, and before the answer that came behind them.
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._pending.append(dict(message))

    def _deliver(self) -> None:
        if self._pending:
            events, self._pending = self._pending, []
            for callback in tuple(self._callbacks):
                callback(events)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client, self._client = self._client, None
        for timer in (self._guard, self._hush):
            if timer is not None:
                timer.cancel()
        if client is not None and (client.runstate != Runstate.IDLE or self._ending is not None):
            with contextlib.suppress(OSError):
                if self._socket is not None:
                    self._socket.shutdown(socket.SHUT_RDWR)
            await self._disconnect(client)  # whatever it stumbled over, it is over
        await self._hang_up()


async def _connected(family: int, place: Any) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(found, place)
    except BaseException:
        found.close()
        raise
    return found


def _tells_nodes(command: str, arguments: Mapping[str, Any] | None) -> bool:
    """Whether *command* has the server list its nodes: the query, or HMP's `info block -n`."""
    if command == "query-named-block-nodes":
        return True
    if command != "human-monitor-command":
        return False
    words = str((arguments or {}).get("command-line", "")).split()
    return words[:2] == ["info", "block"] and any(word.startswith("-") and "n" in word for word in words[2:])


def _why_no_session(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the server closed the connection without a QMP greeting"
    if isinstance(error, (GreetingError, ValueError)):
        return "this is no QMP server: it does not begin with QMP's greeting"
    return _text(error)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text repeats the address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
