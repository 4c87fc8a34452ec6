"""Connections that arrive while a listener changes its certificate."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from libs.listener import Listener, Tls
from ops.dev_certs import write_certificates
from tests.test_port_certificates import client_context

CHANGES = 300
CLIENTS = 4


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_no_connection_is_lost_while_the_certificate_changes(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    write_certificates(tmp_path)
    run(_change_certificates(tmp_path))


async def _change_certificates(folder: Path) -> None:
    """Change the certificate again and again while clients connect."""
    tls = Tls(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    listener = Listener(asyncio.Protocol, tls, "h2", handshake_timeout=10.0)
    listening = socket.create_server(("localhost", 0))
    listener.add(listening)
    await listener.accept()
    changing, context = True, client_context(folder, "h2")

    async def connect() -> None:
        while changing:
            async with asyncio.timeout(10):
                _, writer = await asyncio.open_connection("localhost", listening.getsockname()[1], ssl=context)
            writer.transport.abort()

    try:
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(connect())
            for _ in range(CHANGES):
                await asyncio.sleep(0.01)
                os.utime(folder / "server.pem")
                await listener.follow()
            changing = False
    finally:
        listener.close()
