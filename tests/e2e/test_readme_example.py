"""The README's Python is run as it stands there, in an empty folder with a model file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.e2e.support import write_llama
from tests.reference_reader import read_model

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]
LOOPBACK = {"HERD_NETWORK_HOST": "127.0.0.1", "HERD_NETWORK_PORT": "0", "HERD_API_LISTEN": "127.0.0.1:0"}


async def test_the_example_adds_finds_and_pulls(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), flags=re.DOTALL)
    await write_llama(tmp_path / "my-model.gguf", size_mb=4)
    with trio.fail_after(60):
        ran = await trio.run_process(
            [sys.executable, "-P", "-c", example],
            cwd=tmp_path,
            env={**os.environ, **LOOPBACK},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    shown = ran.stdout.decode()
    assert ran.returncode == 0, shown
    model = read_model(tmp_path / "my-models", "my-model")
    model.verify()
    assert f"my-model:latest {sum(blob.size_bytes for blob in model.blobs)} sha256:{model.model_id}" in shown
    assert "my-model:latest 1 holders" in shown
    assert "True 0 bytes fetched" in shown
