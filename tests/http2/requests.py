"""Random requests: valid ones, and ones that are odd in one or two ways."""

import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from hpack import NeverIndexedHeaderTuple

from tests.http2.differences import DIFFERENCES, NOTHING
from tests.http2.raw import Headers, Request, message
from tests.http2.servicer import SERVICE


@dataclass
class Draft:
    """A request under construction; `served` is the status of its method if nothing is odd."""

    random: random.Random
    method: str = "Echo"
    path: bytes = b""
    served: str = "OK"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    dropped: set[bytes] = field(default_factory=set)
    replaced: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    end: str = "data"
    odd: list[str] = field(default_factory=list)
    is_last_pseudo: bool = False

    @property
    def is_unary(self) -> bool:
        """Whether the method takes one message."""
        return self.method not in ("Collect", "Chat", "Talk")

    def request(self) -> Request:
        """Return the request, with its body cut into frames anywhere."""
        pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", self.path), (b":authority", b"test")]
        regular = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *self.headers]
        headers = [*regular, *pseudo] if self.is_last_pseudo else [*pseudo, *regular]
        kept = [(name, self.replaced.get(name, value)) for name, value in headers if name not in self.dropped]
        if self.odd:  # once grpcio has refused a header, it refuses others that HPACK encodes with its name
            kept = [NeverIndexedHeaderTuple(name, value) for name, value in kept]
        return Request(kept, self._frames(), self.end)

    def _frames(self) -> tuple[bytes, ...]:
        body, frames = self.body, []
        for _ in range(self.random.choice((0, 0, 1, 2, 5))):
            place = self.random.randint(0, len(body))
            frames.append(body[:place])
            body = body[place:]
        if body or frames or self.random.random() < 0.5:
            frames.append(body)
        return tuple(frames)


Change: TypeAlias = Callable[[Draft], None]


def _header(name: str, value: bytes) -> Change:
    def apply(draft: Draft) -> None:
        if name == "grpc-encoding":
            draft.headers = [header for header in draft.headers if header[0] != b"grpc-encoding"]
        draft.headers.append((name.encode(), value))

    return apply


def _replace(name: str, value: bytes) -> Change:
    return lambda draft: draft.replaced.update({name.encode(): value})


def _drop(name: str) -> Change:
    return lambda draft: draft.dropped.add(name.encode())


def _body(change: Callable[[bytes], bytes]) -> Change:
    def apply(draft: Draft) -> None:
        draft.body = change(draft.body)

    return apply


def _flag(flag: int) -> Change:
    return _body(lambda body: bytes([flag]) + body[1:])


def _compressed(encoding: bytes | None, change: Callable[[bytes], bytes]) -> Change:
    def apply(draft: Draft) -> None:
        if encoding is not None and b"grpc-encoding" not in dict(draft.headers):
            draft.headers.append((b"grpc-encoding", encoding))
        draft.body = message(change(draft.body[5:]), flag=1)

    return apply


def _path(path: bytes) -> Change:
    def apply(draft: Draft) -> None:
        draft.path = path

    return apply


def _pseudo_last(draft: Draft) -> None:
    draft.is_last_pseudo = True


def _not_protobuf(draft: Draft) -> None:
    draft.path, draft.body = _path_of("Parse"), message(b"\xff\xff\xff")


def _failing(draft: Draft) -> None:
    draft.path, draft.body = _path_of("Abort"), message(b"NO_SUCH_CODE")


def _path_of(method: str) -> bytes:
    return f"/{SERVICE}/{method}".encode()


BOMB = gzip.compress(bytes(17 * 2**20))

# Odd bodies; the method takes one message.
UNARY: dict[str, Change] = {
    "no message": _body(lambda body: b""),
    "two messages": _body(lambda body: body + message(b"again")),
    "bytes after the message": _body(lambda body: body + b"\0\0"),
    "a prefix that says less": _body(lambda body: message(body[5:] + b"more", length=len(body) - 5)),
    "a cut prefix": _body(lambda body: body[:3]),
    "a cut message": _body(lambda body: message(body[5:], length=len(body) + 1)),
    "a prefix that says 17 MiB": _body(lambda body: message(body[5:], length=17 * 2**20)),
    "a prefix that says 4 GiB": _body(lambda body: message(body[5:], length=2**32 - 1)),
    "flag 2": _flag(2),
    "flag 255": _flag(255),
    "compressed without an encoding": _compressed(None, gzip.compress),
    "compressed as identity": _compressed(b"identity", gzip.compress),
    "gzip of no gzip": _compressed(b"gzip", lambda body: b"not" + body),
    "gzip of nothing": _compressed(b"gzip", lambda body: b""),
    "gzip cut": _compressed(b"gzip", lambda body: gzip.compress(body)[:-3]),
    "gzip with a wrong checksum": _compressed(b"gzip", lambda body: gzip.compress(body + b"!")[:-8] + bytes(8)),
    "gzip and more": _compressed(b"gzip", lambda body: gzip.compress(body) + b"more"),
    "gzip twice": _compressed(b"gzip", lambda body: gzip.compress(body) * 2),
    "gzip that is zlib": _compressed(b"gzip", zlib.compress),
    "gzip bomb": _compressed(b"gzip", lambda body: BOMB),
    "deflate without zlib's header": _compressed(b"deflate", lambda body: zlib.compress(body)[2:-4]),
    "no protobuf": _not_protobuf,
    "a handler that fails": _failing,
}
STREAMING: dict[str, Change] = {
    "a stream's last message cut": _body(lambda body: body + message(b"cut")[:6]),
    "a stream's last prefix says 17 MiB": _body(lambda body: body + message(b"", length=17 * 2**20)),
}

# Odd headers; the body is valid.
HEADERS: dict[str, Change] = {
    "encoding br": _header("grpc-encoding", b"br"),
    "encoding empty": _header("grpc-encoding", b""),
    "encoding in upper case": _header("grpc-encoding", b"GZIP"),
    "timeout abc": _header("grpc-timeout", b"abc"),
    "timeout empty": _header("grpc-timeout", b""),
    "timeout negative": _header("grpc-timeout", b"-1S"),
    "timeout without a unit": _header("grpc-timeout", b"10"),
    "timeout of nine digits": _header("grpc-timeout", b"123456789S"),
    "timeout of twenty digits": _header("grpc-timeout", b"1" * 20 + b"S"),
    "timeout with spaces": _header("grpc-timeout", b" 10 S "),
    "timeout 0": _header("grpc-timeout", b"0S"),
    "GET": _replace(":method", b"GET"),
    "PUT": _replace(":method", b"PUT"),
    "OPTIONS": _replace(":method", b"OPTIONS"),
    "method in lower case": _replace(":method", b"post"),
    "scheme https": _replace(":scheme", b"https"),
    "scheme grpc": _replace(":scheme", b"grpc"),
    "no path": _drop(":path"),
    "no method": _drop(":method"),
    "no scheme": _drop(":scheme"),
    "no authority": _drop(":authority"),
    "no te": _drop("te"),
    "te gzip": _replace("te", b"gzip"),
    "no content-type": _drop("content-type"),
    "content-type +json": _replace("content-type", b"application/grpc+json"),
    "content-type grpc-web": _replace("content-type", b"application/grpc-web"),
    "content-type json": _replace("content-type", b"application/json"),
    "content-type empty": _replace("content-type", b""),
    "-bin not base64": _header("a-bin", b"!!!!"),
    "-bin of five letters": _header("a-bin", b"AAAAA"),
    "-bin in base64url": _header("a-bin", b"-_-_"),
    "-bin with a space": _header("a-bin", b"AA EC"),
    "-bin with bits left over": _header("a-bin", b"AB"),
    "-bin with a comma": _header("a-bin", b"AAEC,AAED"),
    "a name with !": _header("a!b", b"x"),
    "previous attempts not a number": _header("grpc-previous-rpc-attempts", b"x"),
    "metadata of 20 KiB": _header("a", b"x" * 20 * 1024),
    "path empty": _path(b""),
    "path without a slash": _path(b"Echo"),
    "path *": _path(b"*"),
    "path twice": _header(":path", b"/a/b"),
    "path unknown": _path(b"/test.v1.Test/Nothing"),
    "path of another service": _path(b"/a.b.C/Echo"),
    "path /": _path(b"/"),
    "path with a query": _path(b"/test.v1.Test/Echo?a=b"),
    "path with a slash more": _path(b"/test.v1.Test/Echo/"),
    "path in UTF-8": _path("/test.v1.Test/\u00fc".encode()),
    "path in upper case": _path(b"/TEST.V1.TEST/ECHO"),
    "path escaped": _path(b"/test.v1.Test/%45cho"),
    "name in upper case": _header("Abc", b"x"),
    "name with a space": _header("a b", b"x"),
    "name empty": _header("", b"x"),
    "unknown pseudo-header": _header(":protocol-x", b"x"),
    "pseudo-headers last": _pseudo_last,
    "value with spaces around": _header("a", b" x "),
    "value with NUL": _header("a", b"x\0y"),
    "value with a line feed": _header("a", b"x\ny"),
    "value with DEL": _header("a", b"x\x7fy"),
    "connection: close": _header("connection", b"close"),
    "transfer-encoding: chunked": _header("transfer-encoding", b"chunked"),
    "upgrade": _header("upgrade", b"h2c"),
    "content-length too small": _header("content-length", b"2"),
    "content-length no number": _header("content-length", b"x"),
}

# Not odd: variations that clients may send.
CONTENT_TYPES = (b"application/grpc+proto", b"application/grpc;charset=utf-8", b"Application/GRPC")
TIMEOUTS = (b"1H", b"99999999S", b"30000m", b"99999999u")
ENCODINGS = (b"identity", b"gzip", b"deflate")
PLAIN: Headers = (
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
    (b"accept-encoding", b"gzip"),
    (b"user-agent", b"test/1"),
    (b"host", b"other"),
    (b"a", b"1"),
    (b"a", b"2"),
    (b"b_c.d-e", b"3"),
    (b"empty", b""),
    (b"tab", b"x\ty"),
    (b"utf-8", "\u00fc".encode()),
    (b"latin-1", b"\xfc"),
    (b"long", b"x" * 4000),
    (b"a-bin", b"AAEC"),
    (b"a-bin", b"AAED"),
    (b"b-bin", b"AA=="),
    (b"b-bin", b"AA"),
    (b"b-bin", b"AA="),
    (b"c-bin", b""),
    (b"d-bin", b"/+/+"),
    (b"-bin", b"AAEC"),
    (b"grpc-x", b"x"),
    (b"grpc-status", b"3"),
    (b"grpc-message", b"x"),
    (b"grpc-tags-bin", b"AA"),
    (b"grpc-trace-bin", b"AA"),
    (b"grpc-previous-rpc-attempts", b"1"),
    (b"grpc-retry-pushback-ms", b"1"),
    (b"grpc-status-details-bin", b"AA"),
    (b"cookie", b"a=b"),
    (b"cookie", b"c=d"),
    (b"cache-control", b"no-cache"),
    (b"content-encoding", b"gzip"),
    (b"x-envoy-expected-rq-timeout-ms", b"15000"),
)

_METHODS = ("Echo", "Echo", "Report", "Report", "Abort", "Stream", "Write", "Collect", "Chat", "Talk")
_CODES = ("NOT_FOUND", "ABORTED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "CANCELLED", "DATA_LOSS")


def make(random: random.Random) -> Draft:
    """Return a request."""
    draft = Draft(random, random.choice(_METHODS))
    draft.path = _path_of(draft.method)
    draft.end = random.choice(("data", "data", "empty", "trailers"))
    _fill(draft)
    draft.headers += random.sample(PLAIN, random.choice((0, 1, 2, 6)))
    odd = random.sample(("body", "headers"), random.choice((0, 0, 1, 1, 1, 2)))
    if not odd:
        _vary(draft)
    for kind in odd:
        changes = HEADERS if kind == "headers" else UNARY if draft.is_unary else STREAMING
        name = random.choice(list(changes))
        changes[name](draft)
        draft.odd.append(name)
    if any(NOTHING in DIFFERENCES[name].grpcio for name in draft.odd if name in DIFFERENCES):
        draft.headers.append((b"grpc-timeout", b"0S" if "timeout 0" in draft.odd else b"2S"))
    return draft


def _fill(draft: Draft) -> None:
    """Add the messages that the method takes."""
    random, size = draft.random, draft.random.choice((0, 1, 10, 100, 1000, 20_000))
    contents = [random.randbytes(size)]
    if draft.method == "Report":
        contents = [b""]
    elif draft.method == "Abort":
        draft.served = random.choice(_CODES)
        contents = [draft.served.encode()]
    elif draft.method in ("Stream", "Write"):
        contents = [b"%d %d" % (random.choice((0, 1, 3)), random.choice((1, 2, 5000)))]
    elif not draft.is_unary:
        contents = [random.randbytes(size) for _ in range(random.choice((0, 1, 2, 5)))]
    draft.body = b"".join(map(message, contents))


def _vary(draft: Draft) -> None:
    """Express the same request differently."""
    random = draft.random
    if random.random() < 0.3:
        draft.replaced[b"content-type"] = random.choice(CONTENT_TYPES)
    if random.random() < 0.3:
        draft.headers.append((b"grpc-timeout", random.choice(TIMEOUTS)))
    if random.random() < 0.3:
        draft.headers.append((b"grpc-encoding", random.choice(ENCODINGS)))
    elif random.random() < 0.3 and draft.is_unary:
        draft.headers.append((b"grpc-encoding", b"gzip"))
        draft.body = message(gzip.compress(draft.body[5:]), flag=1)
