"""How a blob is cut into chunks, so that any two nodes cut the same bytes the same way."""
