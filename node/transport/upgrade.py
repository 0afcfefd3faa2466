"""From a TCP connection to an admitted, multiplexed one: Noise, then the door, then yamux, all under one deadline."""

from typing import Any

import attrs
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import X25519PrivateKey
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX

from node.identity import Identity
from node.ports import Door, TransportError
from node.transport import multistream, yamux
from node.transport.admission import admit_as_dialer, admit_as_listener
from node.transport.secured import SecuredConnection, TcpConnection
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, public_key_of

NOISE_PROTOCOL_ID = "/noise"


@attrs.frozen
class Credentials:
    """What this node brings to every handshake."""

    peer: PeerId
    key_pair: KeyPair
    noise_key: Any
    door: Door


def make_credentials(identity: Identity, door: Door) -> Credentials:
    """The libp2p key pair is the node's identity; the Noise key is fresh in every process and signed by it."""
    private_key = Ed25519PrivateKey.new(identity.seed)
    return Credentials(
        identity.peer_id, KeyPair(private_key, private_key.get_public_key()), X25519PrivateKey.new(), door
    )


async def upgrade_dialed(raw: TcpConnection, credentials: Credentials, peer: PeerId) -> SecuredConnection:
    """Authenticate a dialed peer and be admitted. Errors as `upgrade_accepted`."""
    await multistream.propose(raw, NOISE_PROTOCOL_ID)
    channel = await authenticate(raw, credentials, peer)
    await admit_as_dialer(channel, credentials.door, credentials.peer)
    await multistream.propose(channel, yamux.PROTOCOL_ID)
    return channel


async def upgrade_accepted(raw: TcpConnection, credentials: Credentials) -> SecuredConnection:
    """Authenticate a peer that dialed us, and admit it.

    AdmissionError when one side refuses the other, RemoteProtocolError when the peer breaks a protocol or is not
    who it should be, TransportError when the connection breaks.
    """
    await multistream.answer(raw, lambda protocol: protocol == NOISE_PROTOCOL_ID)
    channel = await authenticate(raw, credentials, None)
    await admit_as_listener(channel, credentials.door, credentials.peer)
    await multistream.answer(channel, lambda protocol: protocol == yamux.PROTOCOL_ID)
    return channel


async def authenticate(raw: TcpConnection, credentials: Credentials, expected: PeerId | None) -> SecuredConnection:
    """The Noise XX handshake (libp2p's noise specification): as the dialer of `expected`, or without it as listener.

    RemoteProtocolError when the peer breaks it or is somebody else.
    """
    local = ID.from_pubkey(credentials.key_pair.public_key)
    pattern = PatternXX(local, credentials.key_pair.private_key, credentials.noise_key)
    try:
        if expected is not None:
            session = await pattern.handshake_outbound(raw, ID.from_base58(expected))
        else:
            session = await pattern.handshake_inbound(raw)
    except TransportError:
        raise
    except Exception as error:  # boundary: py-libp2p's parsers let many kinds escape; all stand for the peer's bytes.
        raise RemoteProtocolError(f"the Noise handshake failed: {type(error).__name__}: {error}") from error
    remote = session.get_remote_peer()
    peer = PeerId(remote.to_base58())
    public_key_of(peer)
    return SecuredConnection(raw, session.conn.noise_state, remote, peer)
