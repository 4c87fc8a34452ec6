"""Replies composed of messages that are serialized already."""


def prefix(size: int) -> bytes:
    """Return what stands before a serialized message of that many bytes as an element of a reply's field 1."""
    found = bytearray(b"\x0a")
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)
