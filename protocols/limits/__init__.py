"""How many bytes a second may go out and come in: for the node, for each peer, and for each purpose."""
