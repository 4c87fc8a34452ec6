"""Free ports for the servers of tests, reports and benchmarks."""

import os
import random
import socket

from ops.process import free_port, free_ports, holder, is_free


def test_a_free_port_is_returned_once_and_can_be_listened_on() -> None:
    random.seed(7)
    given = free_ports(3)
    random.seed(7)  # other processes might draw the same ports
    again = free_ports(3)
    random.seed()
    assert not set(given) & set(again)
    for port in given:
        assert is_free(port)
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert not is_free(port)


def test_a_port_of_an_ended_connection_is_free() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        client.close()  # the side that closes first stays in TIME_WAIT
        accepted.close()
    assert is_free(port)
    assert holder(port) is None


def test_the_holder_of_a_port_is_named() -> None:
    [port] = free_ports(1)
    name = f"process {os.getpid()}, "
    with socket.create_server(("127.0.0.1", port)):
        assert str(holder(port)).startswith(name)
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert str(holder(port)).startswith(name)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:  # an outgoing connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        client.connect(server.getsockname())
        assert not is_free(port)
        assert str(holder(port)).startswith(name)
