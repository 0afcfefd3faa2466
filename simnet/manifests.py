"""Manifests for models that exist in a simulated world only."""

import json

from protocols.ids import digest_of


def manifest_of(*blobs: bytes) -> bytes:
    """An Ollama manifest whose layers are these blobs."""
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest_of(blob), "size": len(blob)}
        for blob in blobs
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()
