"""The door of the stream plane: inside the security upgrade, before anything else is served on a connection.

On the encrypted channel, with both identities already authenticated, the two ends exchange nonces and the proofs of
their `Door`. The dialer proves first; a listener that is not convinced answers one byte and hangs up, so a stranger
gets a handshake and nothing else: no multiplexer, no protocol list, no stream.
"""

from node.ports import AdmissionError, Door, TransportError
from node.transport.secured import SecuredConnection
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from protocols.trust.admission import NONCE_SIZE_BYTES, PROOF_SIZE_BYTES

_GREETING = b"herd-1\r\n"
_ADMITTED, _REFUSED = b"\x01", b"\x00"

REMEDY = (
    "give this host the mesh key of the mesh (--mesh-key-file or HERD_MESH_KEY;"
    " `herd config mesh-key` shows it on a member)"
)


class Stranger(AdmissionError):
    """A dialer did not prove the mesh key; `peer` is who it proved to be."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(f"peer {peer} did not prove the mesh key")
        self.peer = peer


async def admit_as_dialer(channel: SecuredConnection, door: Door, local: PeerId) -> None:
    """Prove ourselves to a listener, then check its proof.

    AdmissionError when one side is not convinced; RemoteProtocolError when the peer is no herd node; TransportError
    when it goes away.
    """
    nonce = door.challenge()
    await channel.write(_GREETING + nonce)
    nonces = nonce + await _read_greeting(channel)
    await channel.write(door.proof("dialer", local, channel.peer, nonces))
    if await _read(channel, 1) != _ADMITTED:
        raise AdmissionError(f"peer {channel.peer} does not admit this node: the mesh keys differ; {REMEDY}")
    proof = await _read(channel, PROOF_SIZE_BYTES)
    if not door.admits("listener", channel.peer, local, nonces, proof):
        raise AdmissionError(f"peer {channel.peer} did not prove the mesh key of this node: the keys differ; {REMEDY}")


async def admit_as_listener(channel: SecuredConnection, door: Door, local: PeerId) -> None:
    """Check a dialer's proof, then prove ourselves.

    Stranger (after the refusal was sent) when the dialer did not prove the key; otherwise as for the dialer.
    """
    nonce = door.challenge()
    await channel.write(_GREETING + nonce)
    nonces = await _read_greeting(channel) + nonce
    proof = await _read(channel, PROOF_SIZE_BYTES)
    if not door.admits("dialer", channel.peer, local, nonces, proof):
        await channel.write(_REFUSED)
        raise Stranger(channel.peer)
    await channel.write(_ADMITTED + door.proof("listener", local, channel.peer, nonces))


async def _read_greeting(channel: SecuredConnection) -> bytes:
    greeting = await _read(channel, len(_GREETING))
    if greeting != _GREETING:
        raise RemoteProtocolError("the peer is no herd node of this version: it does not know the admission")
    return await _read(channel, NONCE_SIZE_BYTES)


async def _read(channel: SecuredConnection, size_bytes: int) -> bytes:
    data = await channel.read_exactly(size_bytes)
    if data is None:
        raise TransportError(f"peer {channel.peer} closed the connection during the admission")
    return data
