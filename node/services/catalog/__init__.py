"""Keeping the catalog: the pure core's gossip over streams, and its records on disk."""
