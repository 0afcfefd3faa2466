"""The planes of a node: streams through libp2p and sealed datagrams, each behind a port of `node.ports`."""
