"""Runs one service: start, health, metrics, graceful shutdown."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from libs.cache import Cache, CacheSettings, Namespace, Tag
from libs.db import Database, DatabaseSettings, OtherNumbering, Replica
from libs.server import logs
from libs.server.auth import Access, AccessError
from libs.server.dispatcher import Dispatcher
from libs.server.errors import RpcError
from libs.server.exposure import Exposed, check_exposure, shows_reflection
from libs.server.health import NOT_SERVING, SERVING, HealthServicer
from libs.server.metrics import ServerMetrics
from libs.server.metrics_endpoint import serve_metrics
from libs.server.ops import OpsService
from libs.server.secret_files import read_secret_files
from libs.server.settings import ServerSettings, explain
from libs.server.transport import GrpcioTransport, Transport, make_transport
from libs.server.validation import LARGEST_REQUEST_BYTES
from libs.server.worker_metrics import WorkerMetrics
from libs.server.workers import ALONE, SIGNALS, CannotListen, Worker, reserve, supervise
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc

OPS = ops_pb2.DESCRIPTOR.services_by_name["OpsService"].full_name


@dataclass(frozen=True)
class Service:
    """A service to serve.

    `salon_tags` returns all cache tags of a salon that the service can name. `constraints` returns the error for a
    violated constraint, by the constraint's name. `largest_requests` are sizes in bytes by the method's name; other
    methods have LARGEST_REQUEST_BYTES. `background` runs while the server does. `metrics` are
    the service's own. `close` closes the service's resources.
    """

    descriptor: ServiceDescriptor
    servicer: Any
    add: Callable[[Any, Any], None]
    salon_tags: Callable[[str], Awaitable[list[Tag]]]
    constraints: Mapping[str, Callable[[Any], RpcError]] = field(default_factory=dict)
    largest_requests: Mapping[str, int] = field(default_factory=dict)
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    metrics: Sequence[Collector] = ()
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Server:
    """A running server.

    `drain` refuses new RPCs, ends streams, and returns when the RPCs under way have ended. `reload` reads the callers'
    policy again. `ops_port` is the port of OpsService, 0 if it is not served.
    """

    port: int
    ops_port: int
    cache: Cache
    database: Database
    drain: Callable[[], Awaitable[None]]
    reload: Callable[[], Awaitable[None]]


@asynccontextmanager
async def serve(
    settings: ServerSettings,
    database: Database,
    cache: Cache,
    service: Service,
    worker: Worker = ALONE,
    replica: Replica | None = None,
) -> AsyncIterator[Server]:
    """Serve until the block ends; then drain and close everything. Workers share the ports, which must be reserved.

    Health: the service's name is NOT_SERVING while the server drains or has no database. The empty name is the process,
    which answers cached reads even without a database. Raises: CannotListen; AccessError if the callers' policy
    or keys can't be used.
    """
    name = service.descriptor.full_name
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, database.queries, worker)
    healths = HealthServicer()
    access = Access(settings) if settings.requires_identity else None
    dispatcher: Any = Dispatcher(settings, service.constraints, registry, cache, service.largest_requests, access)
    service.add(service.servicer, dispatcher)
    ops = OpsService(cache, database, metrics, service.salon_tags)
    ops_pb2_grpc.add_OpsServiceServicer_to_server(ops, dispatcher)
    shared = not worker.is_alone  # alone, a port in use is an error
    server = _transport(settings, dispatcher, [name], healths, shared, reflects=shows_reflection(settings))
    registry.register(ServerMetrics(cache, database, server.counters))
    ProcessCollector(registry=registry)
    for collector in service.metrics:
        registry.register(collector)
    port, ops_port, servers = _listen(server, settings.host, settings.port), 0, [server]
    if settings.ops_port is not None:
        servers.append(_transport(settings, dispatcher, [OPS], healths, shared, describes=[name]))
        ops_port = _listen(servers[1], settings.ops_host, settings.ops_port)

    async def drain() -> None:
        await healths.drain()
        if settings.drain_delay:
            for each in servers:
                each.retire()
            await asyncio.sleep(settings.drain_delay / 1000)
        await dispatcher.streams.drain()
        if isinstance(server, GrpcioTransport):
            await dispatcher.drain()
        await asyncio.gather(*(each.stop(settings.drain_timeout / 1000) for each in servers))

    async def reload() -> None:
        if access is not None:
            await access.reload()

    async with AsyncExitStack() as stack:
        if access is not None:
            await access.open()
            stack.push_async_callback(access.close)
        if service.close:
            stack.push_async_callback(service.close)
        stack.push_async_callback(database.close)
        database.on_move = cache.database_moved
        await database.open(lambda available: healths.set(name, SERVING if available else NOT_SERVING))
        if replica is not None:
            stack.push_async_callback(replica.close)
            await replica.open()
        stack.push_async_callback(cache.close)
        await cache.open()
        await healths.set(OPS, SERVING)
        for work in service.background:
            stack.callback(asyncio.create_task(work()).cancel)
        await stack.enter_async_context(metrics.open())
        if settings.metrics_port is not None:
            await stack.enter_async_context(_metrics(settings, metrics, shared))
        for each in servers:
            await each.start()
        stack.push_async_callback(drain)
        yield Server(port, ops_port, cache, database, drain, reload)


def _transport(
    settings: ServerSettings,
    dispatcher: Dispatcher,
    services: list[str],
    healths: HealthServicer,
    shared: bool,
    *,
    reflects: bool = True,
    describes: Sequence[str] = (),
) -> Transport:
    """Return the server of a port, which serves `services` and health. Its reflection describes `describes`, too."""
    handlers = [dispatcher.only(*services)]
    largest = dispatcher.largest_requests
    server: Any = make_transport(settings, handlers, LARGEST_REQUEST_BYTES, largest, share_port=shared)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    if reflects:
        names = [*services, *describes, health.SERVICE_NAME, reflection.SERVICE_NAME]
        described = reflection.aio.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, server)  # type: ignore[no-untyped-call]
    return server  # type: ignore[no-any-return]


def _listen(server: Transport, host: str, port: int) -> int:
    address = host if host.startswith("unix:") else f"{host}:{port}"
    try:
        return server.listen(address)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error


@asynccontextmanager
async def _metrics(settings: ServerSettings, metrics: WorkerMetrics, shared: bool) -> AsyncIterator[None]:
    host, port, registry = settings.ops_host, settings.metrics_port or 0, CollectorRegistry()
    registry.register(metrics)
    async with AsyncExitStack() as stack:
        try:
            served = serve_metrics(host, port, registry, share_port=shared, tls_files=settings.tls_files)
            await stack.enter_async_context(served)
        except OSError as error:
            raise CannotListen(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from error
        yield


def main(
    name: str,
    port: int,
    build: Callable[[Cache, Database], Service],
    namespaces: Iterable[Namespace],
    *,
    read_only: bool = False,
    secrets: Sequence[str] = (),
) -> None:
    """Run a service as a process until SIGTERM or SIGINT. A failure to start is one line on standard error.

    Reads <NAME>_DATABASE_URL, else DATABASE_URL, and <NAME>_REPLICA_URL. The login of a `read_only` service may only
    read. `secrets` are the variables of the service's own secrets; each secret may also be in a file (secret_files.py).
    """
    urls = (f"{name.upper()}_DATABASE_URL", "DATABASE_URL")
    replica_url = f"{name.upper()}_REPLICA_URL"
    secrets = (*urls, replica_url, "REDIS_URL", "CACHE_KEY", *secrets)
    try:
        read_secret_files(secrets)
        server_settings = ServerSettings.read(port)
        database_settings = DatabaseSettings.read(*urls)
        has_replica = bool(os.environ.get(replica_url))
        replica_settings = DatabaseSettings.read(replica_url, primary=False) if has_replica else None
        cache_settings = CacheSettings()
    except ValueError as error:
        _fail(name, explain(error))
    logs.configure(server_settings.log_level, service=name)
    try:
        check_exposure(server_settings, secrets)
    except Exposed as error:
        _fail(name, str(error))

    async def run(settings: ServerSettings, worker: Worker) -> None:
        database = Database(database_settings, f"parlor-{name}")
        replica = Replica(replica_settings, f"parlor-{name}", database) if replica_settings else None
        try:
            connect = database.connection
            cache = Cache(cache_settings, connect, bytes, namespaces, read_only=read_only, replica=replica)
            service = build(cache, database)
        except ValueError as error:  # of the service's own settings
            _fail(name, explain(error))
        except OSError as error:
            _fail(name, f"can't read {error.filename}: {error.strerror}")
        over, hangup, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, over.set)
        if settings.requires_identity:
            loop.add_signal_handler(signal.SIGHUP, hangup.set)
        worker.watch_parent(loop, over.set)
        async with serve(settings, database, cache, service, worker, replica) as server:
            structlog.get_logger().info("serving", port=server.port)
            worker.report_ready()
            gc.collect()
            gc.freeze()  # a full collection otherwise walks all that was imported, in 50 ms (decision 0021)
            reloading = asyncio.create_task(_reload(server, hangup))
            await over.wait()
            reloading.cancel()
            structlog.get_logger().info("draining")

    def work(settings: ServerSettings, worker: Worker = ALONE) -> None:
        try:
            uvloop.run(run(settings, worker))
        except (CannotListen, OtherNumbering, AccessError) as error:
            _fail(name, str(error))

    if server_settings.workers == 1:
        work(server_settings)
        return
    try:
        with _reserved(server_settings) as settings:
            forwarded = (signal.SIGHUP,) if settings.requires_identity else ()
            sys.exit(supervise(settings.workers, partial(work, settings), settings.worker_timeout / 1000, forwarded))
    except CannotListen as error:
        _fail(name, str(error))


async def _reload(server: Server, hangup: asyncio.Event) -> None:
    """Let the server reload at each SIGHUP."""
    while True:
        await hangup.wait()
        hangup.clear()
        await server.reload()


@contextmanager
def _reserved(settings: ServerSettings) -> Iterator[ServerSettings]:
    """Reserve the ports for the workers of this process; yield the settings with the ports' numbers."""
    with ExitStack() as stack:
        ports = {
            "port": (settings.host, settings.port),
            "ops_port": (settings.ops_host, settings.ops_port),
            "metrics_port": (settings.ops_host, settings.metrics_port),
        }
        taken = {
            name: stack.enter_context(reserve(host, port)).getsockname()[1]
            for name, (host, port) in ports.items()
            if port is not None
        }
        yield settings.model_copy(update=taken)


def _fail(name: str, message: str) -> NoReturn:
    """End the process with code 2 and a message."""
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)
