"""The section `[api]` of herd.toml: where the HTTP API listens, who may talk to it, and its limits."""

import re

import attrs

from protocols.options import option

PEER_HEADER = "herd-peer"
"""A client names the node it means; the port of a node that is gone may meanwhile be another node's."""

_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]/\s]+):(\d{1,5})")


def split_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as (host, port). ValueError saying what is wanted."""
    match = _LISTEN.fullmatch(text)
    if match is None or int(match.group(2)) > 65535:
        raise ValueError(f"{text!r} is not allowed: HOST:PORT such as 127.0.0.1:4700, port 0 to 65535")
    return match.group(1).strip("[]"), int(match.group(2))


@attrs.frozen
class ApiConfig:
    """The API has no passwords: whoever reaches `listen` rules the node, so the default is loopback."""

    listen: str = option("127.0.0.1:4700", help="HOST:PORT the API listens on; port 0 takes a free one.")
    allowed_hosts: tuple[str, ...] = option(
        (), help="Further host names by which clients may call this API (a check against DNS rebinding)."
    )
    allowed_origins: tuple[str, ...] = option(
        (), help="Web origins besides the API's own that may call it, such as http://localhost:3000."
    )
    request_size_bytes_max: int = option(
        65_536, unit="bytes", minimum=1024, maximum=16_777_216, help="The largest request body taken."
    )
    request_timeout_s: float = option(
        30.0, unit="s", minimum=0.1, maximum=3600, help="How long a client may take to send its request body."
    )
    write_timeout_s: float = option(
        30.0, unit="s", minimum=0.1, maximum=3600, help="How long a client may take nothing before it is hung up on."
    )
    connections_max: int = option(
        256, unit="connections", minimum=2, maximum=65_536, help="Clients at once; further ones wait for a place."
    )
    progress_interval_s: float = option(
        0.1, unit="s", minimum=0.01, maximum=10, help="The shortest time between two progress lines of one operation."
    )
    heartbeat_s: float = option(
        5.0, unit="s", minimum=0.1, maximum=300, help="A progress line is repeated when nothing happened for so long."
    )
    stop_grace_s: float = option(
        1.0, unit="s", minimum=0, maximum=60, help="How long a stopping node takes to end its clients' requests well."
    )

    def __attrs_post_init__(self) -> None:
        try:
            split_listen(self.listen)
        except ValueError as error:
            raise ValueError(f"listen: {error}") from None
        for origin in self.allowed_origins:
            if re.fullmatch(r"[a-z][a-z0-9+.\-]*://[^/\s]+", origin) is None:
                raise ValueError(f"allowed_origins: {origin!r} is not allowed: SCHEME://HOST[:PORT] without a path")
