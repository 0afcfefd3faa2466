"""Settings of the store, section `[store]`, and where a store is when none is named."""

from collections.abc import Mapping
from pathlib import Path

import attrs

from protocols.options import option

MEBIBYTE = 1024 * 1024


@attrs.frozen
class StoreConfig:
    """How this host's store is found, cut into chunks, watched and protected."""

    models_path: str = option("", help="directory of the Ollama store; empty: $OLLAMA_MODELS, else ~/.ollama/models")
    chunk_size_bytes: int = option(
        4 * MEBIBYTE,
        unit="bytes",
        minimum=1 * MEBIBYTE,
        maximum=16 * MEBIBYTE,
        help="target size of a chunk, the unit of transfer, verification and resume",
    )
    scan_interval_s: float = option(
        2.0, unit="s", minimum=0.05, maximum=3600, help="how often models changed by other programs are looked for"
    )
    sweep_interval_s: float = option(
        60.0, unit="s", minimum=0.05, maximum=86400, help="how often every blob file is looked at for changes"
    )
    settle_s: float = option(
        1.5, unit="s", minimum=0, maximum=60, help="how long a manifest may stay half-written before it is reported"
    )
    sync_interval_bytes: int = option(
        64 * MEBIBYTE,
        unit="bytes",
        minimum=1,
        help="received bytes that make a batch, which is then made durable beside what comes next",
    )
    unsynced_bytes_max: int = option(
        256 * MEBIBYTE,
        unit="bytes",
        minimum=1,
        help="received bytes that may wait for the disk, and be lost with the power, before the network waits for it",
    )
    sync_interval_s: float = option(
        1.0, unit="s", minimum=0.05, maximum=60, help="how long received bytes wait for a batch to fill"
    )
    verify_rate_bytes_per_s: int = option(
        0, unit="bytes/s", minimum=0, help="how fast blobs are read for background verification; 0: unlimited"
    )
    reserve_free_bytes: int = option(
        1024 * MEBIBYTE, unit="bytes", minimum=0, help="free space of the disk that is never used"
    )
    clean_up_age_s: float = option(
        7 * 86400.0,
        unit="s",
        minimum=60,
        help="how long an unfinished download, or a file set aside as damaged, stays when nothing happens to it",
    )
    io_threads: int = option(
        4, unit="threads", minimum=1, maximum=64, help="file operations of one kind at the same time"
    )

    def models_directory(self, environment: Mapping[str, str]) -> Path:
        """The store's directory: the setting, else `OLLAMA_MODELS` as Ollama reads it, else the home's default."""
        chosen = self.models_path or environment.get("OLLAMA_MODELS", "").strip().strip("\"'").strip()
        if chosen:
            return Path(chosen).expanduser().absolute()
        home = environment.get("HOME")
        return (Path(home) if home else Path.home()) / ".ollama" / "models"
