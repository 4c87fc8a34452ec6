"""How the transports differ on odd requests: each case with both answers, and the reason.

Two more cannot be in the test that compares transports. A path that is not UTF-8 ends grpcio's server as a whole;
ours answers UNIMPLEMENTED. And once grpcio has refused a header of a connection, it refuses others that HPACK encodes
by that header's name, such as each timeout after a malformed one.
"""

from dataclasses import dataclass

SERVED = "what the method answers"
NOTHING = "DEADLINE_EXCEEDED"  # for requests with a deadline: grpcio's server never answers
RFC_9113 = "it is malformed in HTTP/2 (RFC 9113, 8.1.1 to 8.3): libnghttp2 resets the stream with PROTOCOL_ERROR"
NOT_INTERNAL = "the fault is the caller's, and the status shows it"
RESET = "RESET 1"


@dataclass(frozen=True)
class Difference:
    """The answers of both transports to an odd request, and the reason: a status, `HTTP ...` or `RESET ...`."""

    grpcio: str
    http2: str
    why: str


_INFLATE = Difference("INTERNAL", "INVALID_ARGUMENT", NOT_INTERNAL)
_MALFORMED_PATH = Difference("UNIMPLEMENTED", RESET, RFC_9113)
_MALFORMED_NAME = Difference("INTERNAL", RESET, RFC_9113)
_MALFORMED_TAKEN = Difference(SERVED, RESET, RFC_9113)
_MISSING = Difference("RESET 2", RESET, RFC_9113)
_TIMEOUT = Difference("INTERNAL", "INVALID_ARGUMENT", NOT_INTERNAL)
_LONG_TIMEOUT = Difference(SERVED, "INVALID_ARGUMENT", "gRPC's protocol allows eight digits")
_METHOD = Difference(
    "INTERNAL", "HTTP 405", "it is not a gRPC request: proxies and browsers understand the HTTP status"
)
_KNOWN_METHOD = Difference("RESET 2", "HTTP 405", _METHOD.why)
_CONTENT_TYPE = Difference(
    SERVED, "HTTP 415", "gRPC's protocol has 415 for other types than application/grpc and +proto"
)
_BASE64 = Difference("INTERNAL", "INVALID_ARGUMENT", NOT_INTERNAL)
_ENCODING = Difference("INTERNAL", "UNIMPLEMENTED", "as in gRPC's document on compression")
_FLAG = Difference(
    f"{SERVED}, or ABORTED, or {NOTHING}",
    "INVALID_ARGUMENT",
    "gRPC's protocol has only the flags 0 and 1; grpcio treats such a message as empty, or waits for more",
)
_CARDINALITY = "gRPC's table of statuses has UNIMPLEMENTED for the wrong number of messages"
DIFFERENCES = {
    "no message": Difference(NOTHING, "UNIMPLEMENTED", _CARDINALITY),
    "two messages": Difference(SERVED, "UNIMPLEMENTED", _CARDINALITY),
    "bytes after the message": Difference(SERVED, "UNIMPLEMENTED", _CARDINALITY),
    "a prefix that says less": Difference(SERVED, "UNIMPLEMENTED", _CARDINALITY),
    "a cut prefix": Difference(NOTHING, "INVALID_ARGUMENT", NOT_INTERNAL),
    "a cut message": Difference(NOTHING, "INVALID_ARGUMENT", NOT_INTERNAL),
    "a stream's last message cut": Difference(SERVED, "INVALID_ARGUMENT", "a message was lost, and grpcio drops it"),
    "a stream's last prefix says 17 MiB": Difference(
        "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "ours ends the call at once, grpcio when the handler comes to it"
    ),
    "flag 2": _FLAG,
    "flag 255": _FLAG,
    "compressed without an encoding": _INFLATE,
    "compressed as identity": _INFLATE,
    "gzip of no gzip": _INFLATE,
    "gzip cut": _INFLATE,
    "gzip with a wrong checksum": _INFLATE,
    "gzip and more": _INFLATE,
    "gzip twice": _INFLATE,
    "gzip that is zlib": _INFLATE,
    "deflate without zlib's header": _INFLATE,
    "encoding br": _ENCODING,
    "encoding empty": _ENCODING,
    "encoding in upper case": _ENCODING,
    "no protobuf": Difference("UNKNOWN", "INVALID_ARGUMENT", NOT_INTERNAL),
    "a handler that fails": Difference("UNKNOWN", "UNKNOWN", "grpcio sends the exception's text, ours does not"),
    "timeout abc": _TIMEOUT,
    "timeout empty": _TIMEOUT,
    "timeout negative": _TIMEOUT,
    "timeout without a unit": _TIMEOUT,
    "timeout of nine digits": _LONG_TIMEOUT,
    "timeout of twenty digits": _LONG_TIMEOUT,
    "timeout with spaces": _MALFORMED_TAKEN,
    "GET": _KNOWN_METHOD,
    "PUT": _KNOWN_METHOD,
    "OPTIONS": _METHOD,
    "method in lower case": _METHOD,
    "scheme grpc": Difference("INTERNAL", SERVED, "ours does not check the scheme"),
    "no path": _MISSING,
    "no method": _MISSING,
    "no scheme": _MISSING,
    "no authority": _MISSING,
    "no te": Difference("RESET 2", SERVED, "ours does not need it: missing trailers are noticed anyway"),
    "te gzip": Difference("INTERNAL", RESET, RFC_9113),
    "no content-type": _CONTENT_TYPE,
    "content-type +json": _CONTENT_TYPE,
    "content-type grpc-web": _CONTENT_TYPE,
    "content-type json": _CONTENT_TYPE,
    "content-type empty": _CONTENT_TYPE,
    "-bin not base64": _BASE64,
    "-bin of five letters": _BASE64,
    "-bin in base64url": _BASE64,
    "-bin with a space": _BASE64,
    "-bin with bits left over": Difference("INTERNAL", SERVED, "ours ignores bits beyond the last byte"),
    "-bin with a comma": Difference("INTERNAL", SERVED, "gRPC's protocol splits binary headers at commas"),
    "a name with !": Difference("INTERNAL", SERVED, "HTTP/2 allows it, and it is harmless"),
    "previous attempts not a number": Difference("INTERNAL", SERVED, "the handler may read it, ours does not"),
    "metadata of 20 KiB": Difference(
        f"RESOURCE_EXHAUSTED, or {SERVED}", "RESOURCE_EXHAUSTED", "grpcio lets some pass; its text names all headers"
    ),
    "path empty": _MALFORMED_PATH,
    "path without a slash": _MALFORMED_PATH,
    "path *": _MALFORMED_PATH,
    "path twice": Difference(f"{SERVED}, or UNIMPLEMENTED", RESET, RFC_9113),
    "name in upper case": _MALFORMED_NAME,
    "name with a space": _MALFORMED_NAME,
    "name empty": _MALFORMED_NAME,
    "unknown pseudo-header": _MALFORMED_NAME,
    "pseudo-headers last": _MALFORMED_TAKEN,
    "value with spaces around": _MALFORMED_TAKEN,
    "value with NUL": _MALFORMED_TAKEN,
    "value with a line feed": _MALFORMED_TAKEN,
    "value with DEL": _MALFORMED_TAKEN,
    "connection: close": _MALFORMED_TAKEN,
    "transfer-encoding: chunked": _MALFORMED_TAKEN,
    "upgrade": _MALFORMED_TAKEN,
    "content-length too small": _MALFORMED_TAKEN,
    "content-length no number": _MALFORMED_TAKEN,
}

# Odd as well, but with the same answer.
SAME = {
    "a prefix that says 17 MiB": "RESOURCE_EXHAUSTED",
    "a prefix that says 4 GiB": "RESOURCE_EXHAUSTED",
    "gzip of nothing": SERVED,
    "gzip bomb": "RESOURCE_EXHAUSTED",
    "timeout 0": "DEADLINE_EXCEEDED",
    "scheme https": SERVED,
    "path unknown": "UNIMPLEMENTED",
    "path of another service": "UNIMPLEMENTED",
    "path /": "UNIMPLEMENTED",
    "path with a query": "UNIMPLEMENTED",
    "path with a slash more": "UNIMPLEMENTED",
    "path in UTF-8": "UNIMPLEMENTED",
    "path in upper case": "UNIMPLEMENTED",
    "path escaped": "UNIMPLEMENTED",
}
