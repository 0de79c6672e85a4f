"""Runs the agent so that a blocking call on its event loop is an error, once it serves anybody.

Started by :class:`~.agents.Agent` as a program, with the agent's own command line.
"""

from __future__ import annotations

import os
import socket

from blockbuster import BlockBuster
from tornado.tcpserver import TCPServer

from jupyter_checkpoints.agent import tools
from jupyter_checkpoints.agent.app import main

#: A directory whose programs come before the host's.
PROGRAMS = "TEST_PROGRAMS"

_add_socket = TCPServer.add_socket


def _add_socket_and_watch(self: TCPServer, socket: socket.socket) -> None:
    # Only now: the start itself may block, as nobody is waiting for an answer yet.
    _add_socket(self, socket)
    BlockBuster().activate()


if __name__ == "__main__":
    if programs := os.environ.get(PROGRAMS):
        tools._SYSTEM_PATH = f"{programs}:{tools._SYSTEM_PATH}"
    TCPServer.add_socket = _add_socket_and_watch  # type: ignore[method-assign]
    main()
