"""Ports for servers that tests start."""

import contextlib
import secrets
import socket


def free_port(following: int = 0) -> int:
    """Return a port of this machine that is free, as are so many after it.

    It is below those that systems give to connections, so that none takes it before it is used.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for each in range(port, port + following + 1):
                held.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port
