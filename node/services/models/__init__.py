"""Whole models: add, announce, find, pull, remove."""
