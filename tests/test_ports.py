"""The ports that servers of tests, reports and benchmarks are given."""

import random
import socket

from ops.process import free_ports, is_free


def test_a_port_is_given_once_and_can_be_listened_on() -> None:
    random.seed(7)
    given = free_ports(3)
    random.seed(7)  # what another process might draw
    again = free_ports(3)
    random.seed()
    assert not set(given) & set(again)
    for port in given:
        assert is_free(port)
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert not is_free(port)
