"""Finding and being found through the directory."""
