"""Serving and calling gRPC: the server, what happens to each RPC, the error model, pages, mutations, channels."""

import libs.rpc.transport  # noqa: F401 - before anything imports grpc
from libs.rpc import errors
from libs.rpc.channel import channel, service_config
from libs.rpc.errors import RpcError
from libs.rpc.mutations import Mutations, Write
from libs.rpc.pages import Page, fitting, given, names_given, page, responses, size
from libs.rpc.server import Server, Service, main, serve
from libs.rpc.settings import ServerSettings
from libs.rpc.slices import Slices
from libs.rpc.times import moment, period, whole_seconds

__all__ = [
    "Mutations",
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
