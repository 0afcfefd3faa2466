"""Secret keys on disk: one file a key, hex text and a newline, readable by its owner alone, never half-written."""

import os
import re
import secrets
import stat
from pathlib import Path

from node.errors import UsageError

KEY_SIZE_BYTES = 32
_HEX = re.compile(r"[0-9a-fA-F]{64}")
# A key file holds 65 bytes; reading a little more is enough to see that something else stands there.
_READ_SIZE_BYTES_MAX = 4096


def parse_key(text: str, source: str) -> bytes:
    """The 32 bytes that 64 hex digits mean; white space around them is fine.

    UsageError naming `source` (a file, a variable, a flag) for anything else. The text is never repeated in the
    message: it may be most of a secret.
    """
    digits = text.strip()
    if _HEX.fullmatch(digits) is None:
        raise UsageError(f"{source}: 64 hex digits wanted (32 bytes), found {len(digits)} characters that are not that")
    return bytes.fromhex(digits)


def load_key(path: Path) -> bytes | None:
    """The key in a file, or None when there is no such file.

    UsageError naming the file and the remedy when others may read it, or when it holds no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the key: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: a key is a regular file; move away what stands there")
        if mode & 0o077:
            raise UsageError(f"{path}: others may read this key (mode {mode:04o}); run: chmod 600 {path}")
        data = os.read(descriptor, _READ_SIZE_BYTES_MAX)
    finally:
        os.close(descriptor)
    try:
        return parse_key(data.decode("ascii", "replace"), str(path))
    except UsageError as error:
        raise UsageError(
            f"{error}; bring it back from a copy, or remove it: a key that is given, else a new one, is put there"
        ) from None


def create_key(path: Path, key: bytes) -> bytes:
    """Write a new key file, durable before it has its name; the key that stands there afterwards is given back.

    When another process made the file meanwhile, its key is the one. UsageError when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_durably(temporary, key.hex().encode() + b"\n")
            # A link, unlike a rename, never replaces a key that is already there.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: cannot write the key: {error.strerror}") from error
    standing = load_key(path)
    if standing is None:
        raise UsageError(f"{path}: the key vanished while it was made; is another program cleaning the folder?")
    return standing


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
