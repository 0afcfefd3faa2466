"""`python -m node.cli` is `herd`."""

from node.cli.root import main

main()
