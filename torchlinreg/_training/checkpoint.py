"""Files that hold the state of training."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

# What a file begins with, the number of its format last; then a SHA-256 of the rest.
MAGIC = b"torchlinreg checkpoint 1\n"


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """Replace the file by one of this state, in a step that cannot be seen half done."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a file of `Checkpoint`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no checkpoint, or not the one that was written.
    """
    content = Path(path).read_bytes()
    start = len(MAGIC) + hashlib.sha256().digest_size
    digest, payload = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC):
        raise ValueError(f"resume_from={str(path)!r} is not a file that this version's Checkpoint wrote.")
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(
            f"resume_from={str(path)!r} is damaged: its checksum is wrong. Train from the start."
        )
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
