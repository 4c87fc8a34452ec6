"""docker-compose.yml: what Compose would read in it, and the services with exactly its environment, without Docker."""

import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import grpc
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from libs.cache import acl_rules
from libs.server.exposure import KNOWN_SECRETS, secret_parts
from ops.compose_secrets import write_secrets
from ops.health import credentials, is_serving
from ops.process import free_ports
from ops.servers import Postgres, Valkey
from ops.up import SERVICES, Service
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2_grpc
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tests.processes import run_command
from tests.stack import SALON, message_request
from tests.tls_front import tls_front

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
MOUNT = "/run/secrets"
Duration = Field(pattern=r"^\d+(ms|s|m)$")


class Strict(BaseModel):
    """A mapping of the Compose specification: other keys are errors, as for Compose."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Healthcheck(Strict):
    """How to see whether a container works."""

    test: list[str]
    interval: str = Duration
    timeout: str = Duration
    retries: int
    start_period: str = Duration


class Condition(Strict):
    """When a container that another depends on is ready."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Container(Strict):
    """The keys of a service that the file uses, as the Compose specification defines them."""

    image: str
    build: str | None = None
    user: str | None = None
    entrypoint: list[str] | None = None
    command: list[str]
    environment: dict[str, str] = {}
    secrets: list[str]
    volumes: list[str] = []
    tmpfs: list[str]
    networks: list[str]
    ports: list[str] = []
    depends_on: dict[str, Condition] = {}
    healthcheck: Healthcheck | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    stop_grace_period: str | None = None
    shm_size: str | None = None
    read_only: bool
    cap_drop: list[str]
    security_opt: list[str]
    pids_limit: int


class SecretFile(Strict):
    """A secret in a file of the host."""

    file: str


class Network(Strict):
    """A network."""

    internal: bool = False


class Compose(BaseModel):
    """The file; keys that begin with x- are fragments."""

    model_config = ConfigDict(extra="allow", strict=True)

    services: dict[str, Container]
    networks: dict[str, Network | None]
    volumes: dict[str, None]
    secrets: dict[str, SecretFile]


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file, as Compose reads it."""
    return Compose.model_validate(yaml.safe_load(FILE.read_text()))


def test_the_file_has_the_keys_of_the_specification_and_refers_to_what_it_defines(compose: Compose) -> None:
    assert all(name.startswith("x-") for name in compose.model_extra or {})
    for name, container in compose.services.items():
        assert set(container.secrets) <= compose.secrets.keys(), name
        assert set(container.networks) <= compose.networks.keys(), name
        for needed, condition in container.depends_on.items():
            other = compose.services[needed]
            assert condition.condition != "service_healthy" or other.healthcheck, name
            assert condition.condition != "service_completed_successfully" or other.restart == "no", name
            assert set(container.networks) & set(other.networks), name
        for volume in container.volumes:
            source = volume.split(":")[0]
            assert source in compose.volumes or (ROOT / source).exists(), name
    # Compose replaces ${NAME} and $NAME, and $$ by a dollar sign.
    assert re.findall(r"(?<!\$)(?:\$\$)*\$(?!\$)", FILE.read_text()) == []


def test_every_container_is_hardened(compose: Compose) -> None:
    for name, container in compose.services.items():
        assert container.read_only and container.cap_drop == ["ALL"], name
        assert container.security_opt == ["no-new-privileges:true"], name
        assert container.user or container.image == "parlor", name  # whose image has a user
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in container.ports), name
        assert not container.ports or "callers" in container.networks, name
        assert all(volume.endswith(":ro") or volume.split(":")[0] in compose.volumes for volume in container.volumes)
    assert "USER parlor" in (ROOT / "Dockerfile").read_text()
    assert [name for name, network in compose.networks.items() if network and network.internal] == ["data"]
    assert {name for name, each in compose.services.items() if "callers" in each.networks} == set(SERVICES)


def test_the_file_contains_no_secret_and_git_ignores_those_that_it_names(compose: Compose) -> None:
    assert "://" not in FILE.read_text()
    for name, secret in compose.secrets.items():
        assert secret.file == f".secrets/{name}"
    assert ".secrets/" in (ROOT / ".gitignore").read_text().split()
    for container in compose.services.values():
        for variable, value in container.environment.items():
            assert not secret_parts(value) & KNOWN_SECRETS
            if value.startswith(MOUNT):
                assert value.removeprefix(f"{MOUNT}/") in container.secrets, variable
        named = set(
            re.findall(rf"{MOUNT}/([\w.]+)", str([container.entrypoint, container.command, container.healthcheck]))
        )
        assert named <= set(container.secrets)


def test_all_secrets_of_the_file_are_generated_and_kept_by_a_second_run(compose: Compose, tmp_path: Path) -> None:
    written = {file.name: file.read_text() for file in write_secrets(tmp_path)}
    assert compose.secrets.keys() <= written.keys()
    assert {file.name: file.read_text() for file in write_secrets(tmp_path)} == written
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    passwords = [text for name, text in written.items() if name.endswith(".password")]
    assert len(set(passwords)) == len(passwords) and min(map(len, passwords)) >= 32
    assert set(acl_rules()) < set(written["valkey.acl"].split())
    assert "user default off" in written["valkey.acl"] and written["parlor.password"] not in written["valkey.acl"]


class Contained(Service):
    """A service with the environment of its container, but for the places of files, hosts and ports."""

    def __init__(self, name: str, ports: range, folder: Path, environment: dict[str, str], log: Path) -> None:
        """Don't start it yet; `ports` are those of its RPCs, its OpsService and its metrics."""
        numbers = dict(zip(("PORT", "OPS_PORT", "METRICS_PORT"), map(str, ports), strict=True))
        super().__init__(name, ports[0], log, {**environment, **numbers})
        self.folder, self.ports = folder, ports

    def own(self, client: str) -> grpc.ChannelCredentials:
        """Return the credentials of a client."""
        return credentials(self.folder / "ca.pem", self.folder / f"{client}.pem", self.folder / f"{client}.key")

    def channel(self, client: str, port: int = 0) -> grpc.Channel:
        """Return a channel to its RPCs, or to another of its ports."""
        return grpc.secure_channel(f"localhost:{self.ports[port]}", self.own(client))

    def is_ready(self) -> bool:
        """Return what its health check says."""
        return is_serving(f"localhost:{self.port}", SERVICES[self.name], 1.0, self.own(self.name))


def located(environment: dict[str, str], folder: Path, booking: int) -> dict[str, str]:
    """Return an environment with the files and the booking service where they are here."""
    places = {MOUNT: str(folder), "/etc/parlor": str(ROOT / "deploy"), "booking:50051": f"localhost:{booking}"}
    for old, new in places.items():
        environment = {name: value.replace(old, new) for name, value in environment.items()}
    return environment


@pytest.fixture
def contained(compose: Compose, own_postgres: Postgres, tmp_path: Path) -> Iterator[dict[str, Contained]]:
    """The three services, as their containers would run them."""
    folder = tmp_path / "secrets"
    write_secrets(folder)
    user = (folder / "valkey.acl").read_text().splitlines()[1].split()[1:]
    ports = {name: free_ports(3) for name in SERVICES}
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey(options=["--user", *user]))
        before_postgres = stack.enter_context(tls_front(own_postgres.port, folder, postgres=True))
        before_valkey = stack.enter_context(tls_front(valkey.port, folder))
        write_secrets(folder, folder, f"localhost:{before_postgres.port}", f"localhost:{before_valkey.port}")
        environments = {
            name: located(container.environment, folder, ports["booking"][0])
            for name, container in compose.services.items()
        }
        assert "up to date" in run_command(compose.services["migrate"].command, environments["migrate"])
        services = {
            name: Contained(name, ports[name], folder, environments[name], tmp_path / f"{name}.log")
            for name in SERVICES
        }
        for service in services.values():
            stack.enter_context(service)
        assert before_postgres.refused == 0
        yield services


def until(condition: Callable[[], bool]) -> None:
    """Wait up to 10 s for a condition: on a busy machine a service may lose Redis for a moment."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def page(url: str, context: ssl.SSLContext) -> bytes:
    """Return what a URL answers."""
    with urllib.request.urlopen(url, timeout=5, context=context) as found:  # noqa: S310 - ours
        return bytes(found.read())


def test_the_services_start_with_the_environment_of_the_file_and_serve_those_with_a_right(
    contained: dict[str, Contained],
) -> None:
    salon = booking_pb2.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
    with contained["booking"].channel("bot") as channel:
        booking = booking_pb2_grpc.BookingServiceStub(channel)
        assert booking.UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon), timeout=10).salon_id == SALON
    with contained["messaging"].channel("bot") as channel:  # which asks booking, by TLS and with its own name
        request = message_request(phone_number="0151 12345678")
        with pytest.raises(grpc.RpcError, match="region"):  # it has read the salon, which has no region
            messaging_pb2_grpc.MessagingServiceStub(channel).RecordMessage(request, timeout=10)
    with contained["stats"].channel("operator", 1) as channel:
        ops = ops_pb2_grpc.OpsServiceStub(channel)
        until(lambda: ops.GetCacheStatistics(ops_pb2.GetCacheStatisticsRequest(), timeout=10).redis.connected)
    for name, service in contained.items():
        context = ssl.create_default_context(cafile=service.folder / "ca.pem")
        context.load_cert_chain(service.folder / "operator.pem", service.folder / "operator.key")
        url = f"https://localhost:{service.ports[2]}/metrics"
        until(lambda: b"parlor_cache_connected 1.0" in page(url, context))  # noqa: B023 - it is called here
        assert not is_serving(f"localhost:{service.port}", SERVICES[name])  # without TLS
