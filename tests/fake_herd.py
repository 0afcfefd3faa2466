"""The real `herd` command line over a node without a network: only `node.app` is replaced.

`FAKE_START` chooses how the node starts: `refused`, `broken`, `slow` (never ready) or well.
"""

import os
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from node.api.server import serve_api
from node.cli import main
from node.config import HerdConfig
from node.errors import JoinRefused
from node.home import holding_home
from node.metrics import Metrics
from tests.support_node import FakeNode


@asynccontextmanager
async def open_fake(config: HerdConfig) -> AsyncIterator[FakeNode]:
    """What `node.app` gives, over a FakeNode."""
    start = os.environ.get("FAKE_START", "")
    with holding_home(config.home):
        async with trio.open_nursery() as nursery:
            if start == "refused":
                raise JoinRefused("the mesh keys differ; give this host the mesh key of the mesh")
            if start == "broken":
                raise RuntimeError("a bug")
            if start == "slow":
                await trio.sleep_forever()
            node = FakeNode(nursery)
            node.api = await nursery.start(serve_api, node, config.api, Metrics("0.1.0"))
            try:
                yield node
            finally:
                print("left well", file=sys.stderr)
                if start == "stuck":
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()


fake_app = types.ModuleType("node.app")
fake_app.open_node = open_fake  # type: ignore[attr-defined]
sys.modules["node.app"] = fake_app

if __name__ == "__main__":
    main()
