"""Every backend keeps the contract: this process alone, lock files, and lock files without `fcntl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentguard.locks import FileBackend, LockTable, granting
from agentguard.locks.native import Polled
from agentguard.locks.pump import Pumps
from agentguard.locks.section import leave
from agentguard.testing import LockContract


class TestOneProcess(LockContract):
    def open(self) -> LockTable:
        self.table = getattr(self, "table", None) or LockTable()
        return self.table


class TestLockFiles(LockContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "locks"

    def open(self) -> LockTable:
        return LockTable(FileBackend(self.path))

    def setup_method(self) -> None:
        """The folder is not known yet: see `tables`."""

    @pytest.fixture(autouse=True)
    def tables(self, folder: None) -> None:
        super().setup_method()


class TestLockFilesWithoutThreads(TestLockFiles):
    """Where no thread can be had to wait in the kernel, one that looks now and then does for all."""

    @pytest.fixture(autouse=True)
    def pumps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(granting, "PUMPS", Pumps(leave, limit=0))


class TestPolledLockFiles(TestLockFiles):
    """Where `fcntl` is missing; shared locks are exclusive between processes there."""

    shares = False

    def open(self) -> LockTable:
        return LockTable(FileBackend(self.path, Polled()))
