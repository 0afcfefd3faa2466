"""Frames on a stream: four bytes of length, big-endian, then that many bytes."""

import struct

from protocols.errors import LocalProtocolError, RemoteProtocolError

HEADER_SIZE_BYTES = 4
FRAME_SIZE_BYTES_MAX = 20 * 1024 * 1024
"""Larger than the largest chunk (16 MiB) and the largest manifest (4 MiB) with everything around them."""


def frame_header(payload_size_bytes: int) -> bytes:
    """The header of a frame of this size; LocalProtocolError when no frame may be that large."""
    if payload_size_bytes > FRAME_SIZE_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {payload_size_bytes} bytes is over {FRAME_SIZE_BYTES_MAX}")
    return struct.pack(">I", payload_size_bytes)


def payload_size(header: bytes, size_bytes_max: int = FRAME_SIZE_BYTES_MAX) -> int:
    """The payload size a header announces; RemoteProtocolError when it is over the limit, before a byte is read."""
    (size_bytes,) = struct.unpack(">I", header)
    if size_bytes > size_bytes_max:
        raise RemoteProtocolError(f"a frame of {size_bytes} bytes is over the limit of {size_bytes_max}")
    return int(size_bytes)
