"""Fetching and serving blobs: sessions with givers and askers, one transfer a blob, chunks checked as they come."""
