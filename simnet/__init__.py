"""A virtual network for the same node code; nothing in `node` or `protocols` imports it."""
