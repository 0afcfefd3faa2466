"""The node's HTTP side: routes for the command line and for people, events over a WebSocket, metrics."""
