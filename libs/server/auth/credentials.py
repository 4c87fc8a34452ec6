"""What a call shows of its caller: a bearer token, or the names in its connection's certificate."""

from typing import Any, TypeAlias

SPIFFE = "spiffe://"
_NAMES = "libs.server.auth"

Names: TypeAlias = tuple[str, ...]


def bearer_of(context: Any) -> str | None:
    """Return the authorization of a call, None without one."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return str(value)
    return None


def names_of(context: Any) -> Names:
    """Return the names of a client's certificate: its spiffe:// URI, else its DNS names.

    Several spiffe:// URIs are none: a certificate of SPIFFE has one.
    """
    if (own := getattr(context, "connection_state", None)) is None:  # of grpcio
        return _read_names(context.auth_context())
    state = own()
    if (names := state.get(_NAMES)) is None:
        names = state[_NAMES] = _read_names(context.auth_context())
    return names  # type: ignore[no-any-return]


def _read_names(properties: Any) -> Names:
    uris = [uri for uri in map(_text, properties.get("peer_uri", ())) if uri.startswith(SPIFFE)]
    if uris:
        return tuple(uris) if len(uris) == 1 else ()
    return tuple(map(_text, properties.get("peer_dns", ())))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
