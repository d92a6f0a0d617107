"""What the tests of lock files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentguard.locks import FileBackend, LockTable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".agentguard" / "locks"


@pytest.fixture
def open_table(folder: Path) -> Iterator[Callable[[], LockTable]]:
    """Each call: another process's table, as far as the files can tell."""
    made: list[LockTable] = []

    def make() -> LockTable:
        made.append(LockTable(FileBackend(folder)))
        return made[-1]

    yield make
    for table in made:
        table.close()
