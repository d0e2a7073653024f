"""TCP ports of this machine, for servers that a command starts."""

from __future__ import annotations

import socket

from mm_core.core.errors import InputError


def require_free_port(port: int, option: str = "--port") -> None:
    """Raise InputError if the port is in use on 127.0.0.1.

    Args:
        port: The port.
        option: The option of the command that chooses another port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"port {port} is in use: choose another with {option}") from None


def has_server(port: int) -> bool:
    """Return whether a server accepts connections at the port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
