"""The keys of a node on disk, and the door that the mesh key opens."""
