"""A cable to a TCP server that a test can cut, or leave in place and let fall silent."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self


class Cable:
    """Forwards a free loopback port to a server's, from a thread of its own."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._is_silent = self._is_cut = self._is_over = False
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._thread.join(10)
        self._drop_all()
        self._listener.close()
        self._selector.close()

    def cut(self) -> None:
        """Break every connection, and each new one at once."""
        self._is_cut = True

    def fall_silent(self) -> None:
        """Keep every connection and take new ones, but let nothing through."""
        self._is_silent = True

    def mend(self) -> None:
        """Let everything through again; what came meanwhile arrives now."""
        self._is_cut = self._is_silent = False

    def _run(self) -> None:
        while not self._is_over:
            if self._is_cut:
                self._drop_all()
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self._listener:
                    self._accept()
                elif not self._is_silent and key.fileobj in self._pairs:
                    self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self._is_cut:
            near.close()
            return
        far = socket.create_connection(self._target)
        self._pairs |= {near: far, far: near}
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = end.recv(65536)
            self._pairs[end].sendall(data)
        if not data:
            self._drop(end)

    def _drop(self, end: socket.socket) -> None:
        other = self._pairs.pop(end)
        del self._pairs[other]
        for side in (end, other):
            self._selector.unregister(side)
            side.close()

    def _drop_all(self) -> None:
        while self._pairs:
            self._drop(next(iter(self._pairs)))
