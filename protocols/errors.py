"""Two kinds of blame, and no third: what we did wrong, and what they did wrong."""


class ProtocolError(Exception):
    """Abstract parent: code raises one of the two children, callers may catch both."""


class LocalProtocolError(ProtocolError):
    """Our own code broke a protocol's rule: a bug here, never a reason to blame a peer."""


class RemoteProtocolError(ProtocolError):
    """A peer sent what the protocol does not allow: refuse it, count it, blame the peer, go on."""
