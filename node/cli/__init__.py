"""The command `herd`. Everything but the parsing is imported by the command that needs it, so that help is instant."""

from node.cli.root import main

__all__ = ["main"]
