"""The store: Ollama's own directory of models, kept as Ollama keeps it, with herd's things beside it in `.herd/`."""
