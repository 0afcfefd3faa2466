"""What must hold of a store on a simulated disk at any moment, after whatever crash: found by reading all of it."""

from blake3 import blake3

from protocols.ids import digest_of
from simnet.blobs import MemoryBlobs
from simnet.models import MemoryModels


def wrong_bytes(blobs: MemoryBlobs) -> list[str]:
    """Whole blobs and chunks held or said to be durable that are not what they are called, but for what rotted."""
    found: list[str] = []
    for digest in blobs.digests():
        data = blobs.whole(digest)
        if data is not None and digest_of(data) != digest and not blobs.is_rotten(digest):
            found.append(f"{digest} is called whole and holds the bytes of {digest_of(data)}")
    for recipe, file, bits in blobs.unfinished():
        for index in () if file.rotten else bits:
            data = file.content.read(recipe.offset_bytes(index), recipe.sizes_bytes[index])
            if blake3(data).digest() != recipe.chunk_hash(index):
                found.append(f"chunk {index} of {recipe.digest} is called held and is not what its hash says")
    return found


def unfounded_names(models: MemoryModels, blobs: MemoryBlobs) -> list[str]:
    """Manifests that cannot be read, and blobs that a manifest names and that are not here whole."""
    found = [f"{path} cannot be read" for path in models.unreadable]
    for name, manifest in models.manifests().items():
        found.extend(
            f"{name.display()} names {blob.digest}, which is not here whole"
            for blob in manifest.blobs()
            if blobs.whole(blob.digest) is None
        )
    return found
