from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: many disks are laid out, and none of them is the real one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path.resolve()
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder).resolve()
