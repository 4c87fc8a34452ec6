"""Serving and calling gRPC: the server, its one interceptor, the error model, pages, mutations, channels."""

from libs.rpc import errors
from libs.rpc.channel import channel, service_config
from libs.rpc.errors import RpcError
from libs.rpc.mutations import Mutations, Write
from libs.rpc.pages import Page, fitting, page, size
from libs.rpc.server import Server, Service, main, serve
from libs.rpc.settings import ServerSettings
from libs.rpc.times import moment, period, whole_seconds

__all__ = [
    "Mutations",
    "Page",
    "RpcError",
    "Server",
    "ServerSettings",
    "Service",
    "Write",
    "channel",
    "errors",
    "fitting",
    "main",
    "moment",
    "page",
    "period",
    "serve",
    "service_config",
    "size",
    "whole_seconds",
]
