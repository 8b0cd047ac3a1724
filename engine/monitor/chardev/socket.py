"""The socket character device: listens for any number of clients, or connects to a server."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, ClassVar

from engine.descriptors.passing import PassingSocket
from engine.errors import GenericError
from engine.monitor.chardev.base import Chardev, chardev_kind
from engine.monitor.chardev.options import ChardevSocket
from engine.monitor.session import Session, SessionFactory
from engine.sockets import streams
from engine.sockets.addresses import InetSocketAddress, UnixSocketAddress

log = logging.getLogger("engine.monitor")


@chardev_kind
class SocketChardev(Chardev):
    """A socket. Unlike QEMU's, a listening one serves several clients at once."""

    kind: ClassVar[str] = "socket"

    def __init__(self, label: str, options: ChardevSocket) -> None:
        super().__init__(label)
        self._address: InetSocketAddress | UnixSocketAddress = options.addr.branch.data
        self._server = options.server is not False
        self._wait = options.wait if options.wait is not None else self._server
        self._nodelay = options.nodelay is True
        self._reconnect = options.reconnect or 0
        self._listening: streams.Listening | None = None
        self._early: list[socket.socket] = []
        self._sessions: dict[Session, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        if self._server and options.reconnect is not None:
            raise GenericError("'reconnect' option is incompatible with socket in server listen mode")
        if not self._server and options.wait is not None:
            raise GenericError("'wait' option is incompatible with socket in client connect mode")
        if self._reconnect < 0:
            raise GenericError("'reconnect' is a number of seconds, 0 or more")
        if self._nodelay and isinstance(self._address, UnixSocketAddress):
            raise GenericError("chardev: socket: the option 'nodelay' is for TCP")

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def filename(self) -> str:
        if self._sessions:
            return next(reversed(self._sessions.values()))
        return f"disconnected:{self._name()}"

    def _name(self, sock: socket.socket | None = None) -> str:
        suffix = ",server=on" if self._server else ""
        address = self._address
        if isinstance(address, UnixSocketAddress):
            if address.abstract:
                suffix = f",abstract=on,tight={'off' if address.tight is False else 'on'}{suffix}"
            return f"unix:{address.path}{suffix}"
        if sock is not None:
            return f"tcp:{_inet(sock.getsockname())}{suffix} <-> {_inet(sock.getpeername())}"
        if self._listening is not None:
            host, port = self._listening.sock.getsockname()[:2]
            return f"tcp:{host}:{port}{suffix}"
        return f"tcp:{address.host}:{address.port}{suffix}"

    # -- opening ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._server:
            await self._listen()
        elif self._reconnect:
            self._start(self._keep_connecting(at_once=True))
        else:
            self._early.append(await self._connect())

    async def _listen(self) -> None:
        if isinstance(self._address, UnixSocketAddress):
            self._listening = streams.listen_unix(self._address)
        else:
            self._listening = await streams.listen_inet(self._address)
        if self._wait:
            self.announce(f"waiting for connection on: {self.filename}")
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(self._listening.sock)
            except BaseException:
                await self.close()
                raise
            self._early.append(client)

    async def _connect(self) -> socket.socket:
        if isinstance(self._address, UnixSocketAddress):
            return await streams.connect_unix(self._address)
        return await streams.connect_inet(self._address)

    async def _keep_connecting(self, *, at_once: bool) -> None:
        told = not at_once
        if not at_once:
            await asyncio.sleep(self._reconnect)
        while not self._closed:
            try:
                client = await self._connect()
            except GenericError as exc:
                if not told:
                    self.announce(f"Unable to connect character device {self.label}: {exc.desc}")
                    told = True
                await asyncio.sleep(self._reconnect)
                continue
            if self._factory is None:
                self._early.append(client)
            else:
                await self._serve(client)
            return

    # -- serving ---------------------------------------------------------------------------------------------

    def attach(self, factory: SessionFactory) -> None:
        super().attach(factory)
        early, self._early = self._early, []
        for client in early:
            self._start(self._serve(client))
        if self._listening is not None:
            self._start(self._accept())

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        assert self._listening is not None
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                client, _ = await loop.sock_accept(self._listening.sock)
            except OSError as exc:
                # Out of descriptors, most likely: those who are connected go on, and things may get better.
                log.warning("chardev %s: accept: %s", self.label, exc)
                await asyncio.sleep(0.1)
                continue
            await self._serve(client)

    async def _serve(self, client: socket.socket) -> None:
        assert self._factory is not None
        session = self._factory(False)
        try:
            name = self._name(client)
            if self._nodelay:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sessions[session] = name
            session.on_lost.append(lambda: self._lost(session))
            client.setblocking(False)
            if isinstance(self._address, UnixSocketAddress):
                client = passing = PassingSocket(client)
                session.take_passed = passing.take_passed
            await asyncio.get_running_loop().connect_accepted_socket(lambda: session, client)
        except OSError as exc:
            # The client went before it was served.
            log.info("chardev %s: %s", self.label, exc)
            self._sessions.pop(session, None)
            client.close()

    def _lost(self, session: Session) -> None:
        self._sessions.pop(session, None)
        if not self._server and self._reconnect and not self._closed:
            self._start(self._keep_connecting(at_once=False))

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for client in self._early:
            client.close()
        self._early.clear()
        if self._listening is not None:
            self._listening.remove_file()
            self._listening.sock.close()
            self._listening = None


def _inet(address: tuple[Any, ...]) -> str:
    return f"{address[0]}:{address[1]}"
