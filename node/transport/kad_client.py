"""Questions to other nodes of the Kad-DHT, each under a deadline and without py-libp2p's local caches.

The stock client answers from what it heard first (for 48 hours), waits for no confirmation, and asks dead peers for
ten seconds each. The wire format is the libp2p Kad-DHT specification's: protobuf messages behind a varint length.
"""

from collections.abc import Sequence
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.common import MAX_DHT_MESSAGE_SIZE, PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID

from node.ports import TransportError
from node.transport import multistream
from node.transport.host import LibraryStream
from node.transport.multistream import ProtocolRefused
from protocols.errors import RemoteProtocolError

OPEN_TIMEOUT_S = 4.0
ANSWER_TIMEOUT_S = 5.0

FAILED_FOR_S = 20.0
"""A peer that could not be reached is not tried again for this long, so that one dead peer slows one lookup only."""

FAILED_MAX = 4096


class DhtHost:
    """The transport's host as the DHT sees it. Every stream is opened under a deadline."""

    def __init__(self, host: BasicHost) -> None:
        self._host = host
        self._failed_until_s: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[str]) -> LibraryStream:
        """A new stream; TransportError when the peer cannot be reached, does not serve it, or failed just now."""
        peer = peer_id.to_base58()
        if trio.current_time() < self._failed_until_s.get(peer, 0.0):
            raise TransportError(f"peer {peer} could not be reached just now")
        with trio.move_on_after(OPEN_TIMEOUT_S):
            try:
                return await self._open(peer_id, protocol_ids[0])
            except (SwarmException, ProtocolRefused, RemoteProtocolError) as error:
                self._failed(peer)
                raise TransportError(f"peer {peer} is not reached for the DHT: {error}") from error
            except TransportError as error:
                # It is there, and too busy just now.
                raise TransportError(f"peer {peer} refused a stream for the DHT: {error}") from error
        self._failed(peer)
        raise TransportError(f"peer {peer} did not answer within {OPEN_TIMEOUT_S:g} s")

    async def _open(self, peer_id: ID, protocol: str) -> LibraryStream:
        stream: LibraryStream = await self._host.get_network().new_stream(peer_id)
        try:
            await multistream.propose(stream.muxed_stream, protocol)
        except BaseException:
            await stream.reset()
            raise
        stream.set_protocol(protocol)
        return stream

    def seen(self, peer: str) -> None:
        """The peer is there: forget that it failed."""
        self._failed_until_s.pop(peer, None)

    def _failed(self, peer: str) -> None:
        self._failed_until_s[peer] = trio.current_time() + FAILED_FOR_S
        if len(self._failed_until_s) > FAILED_MAX:
            del self._failed_until_s[next(iter(self._failed_until_s))]


async def ask(host: DhtHost, peer_id: ID, question: Message) -> Message:
    """One question and its answer. TransportError when none came (the specification's refusal is a reset stream);
    RemoteProtocolError when the answer is malformed or to another question.
    """
    stream = await host.new_stream(peer_id, [PROTOCOL_ID])
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            payload = question.SerializeToString()
            await stream.write(_varint(len(payload)) + payload)
            data = await _read_message(stream)
            # The peer sees an orderly end; the host waits for its own in the background.
            await stream.close()
    except BaseException as error:
        await stream.reset()
        if isinstance(error, trio.TooSlowError):
            raise TransportError(f"peer {peer_id} did not answer within {ANSWER_TIMEOUT_S:g} s") from None
        if isinstance(error, StreamError):
            raise TransportError(f"peer {peer_id} gave no answer: {error}") from error
        raise
    answer = Message()
    try:
        answer.ParseFromString(data)
    except Exception as error:  # boundary: protobuf's DecodeError and what else bytes of a peer may set off.
        raise RemoteProtocolError(f"peer {peer_id} answered with no DHT message: {error}") from error
    if answer.type != question.type:
        raise RemoteProtocolError(f"peer {peer_id} answered another question")
    return answer


async def _read_message(stream: LibraryStream) -> bytes:
    size_bytes = 0
    for shift in range(0, 35, 7):
        (byte,) = await stream.read(1)
        size_bytes |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise RemoteProtocolError("the length of a DHT message is no varint")
    if size_bytes > MAX_DHT_MESSAGE_SIZE:
        raise RemoteProtocolError(f"a DHT message of {size_bytes} bytes")
    data = bytearray()
    while len(data) < size_bytes:
        part = await stream.read(size_bytes - len(data))
        if not part:
            raise StreamEOF("the stream ended inside a DHT message")
        data += part
    return bytes(data)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
