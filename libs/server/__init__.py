"""gRPC servers and channels: serving, the handling of each RPC, errors, pages, idempotent writes."""

import libs.server.transport  # noqa: F401 - before anything imports grpc
from libs.server import errors
from libs.server.changes import ChangeTable
from libs.server.client import Identity, channel, service_config
from libs.server.errors import RpcError
from libs.server.feed import ChangeFeed
from libs.server.idempotency import IdempotentWrites, Write
from libs.server.pagination import Page, fitting, given, names_given, page, responses, size
from libs.server.server import Server, Service, main, serve
from libs.server.settings import ServerSettings
from libs.server.slices import Slices
from libs.server.validation import moment, period, whole_seconds

__all__ = [
    "ChangeFeed",
    "ChangeTable",
    "IdempotentWrites",
    "Identity",
    "Page",
    "RpcError",
    "Server",
    "ServerSettings",
    "Service",
    "Slices",
    "Write",
    "channel",
    "errors",
    "fitting",
    "given",
    "main",
    "moment",
    "names_given",
    "page",
    "period",
    "responses",
    "serve",
    "service_config",
    "size",
    "whole_seconds",
]
