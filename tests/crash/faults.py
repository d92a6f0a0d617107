"""Kill the process, or let the disk fail, at the n-th system call that the code makes through `os`."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

CHANGING = (
    "open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "fchmod", "fchown",
    "setxattr", "copy_file_range",
)  # fmt: skip
FAILING = (*CHANGING, "read", "close", "lstat", "stat", "fstat", "listdir")


class Faults:
    """While entered: every call is counted, and `act(name)` runs before the `at`-th (from it on with `lasting`)."""

    def __init__(
        self,
        calls: tuple[str, ...],
        at: int = 0,
        act: Callable[[str], None] = lambda name: None,
        *,
        lasting: bool = False,
    ) -> None:
        self.count = 0
        self._calls, self._at, self._act, self._lasting = calls, at, act, lasting
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Faults:
        for name in self._calls:
            if hasattr(os, name):
                self._real[name] = getattr(os, name)
                setattr(os, name, self._wrapper(name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapper(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at or (self._lasting and 0 < self._at < self.count):
                if name == "close":  # a close that fails has closed
                    self._real["close"](*args)
                self._act(name)
            return self._real[name](*args, **options)

        return call


def raising(code: int) -> Callable[[str], None]:
    def act(name: str) -> None:
        raise OSError(code, os.strerror(code))

    return act


def killed_at(at: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child process that is killed before its `at`-th changing call; whether it came that far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only makes files
        child = os.fork()
    if child == 0:
        code = 1
        try:
            with Faults(CHANGING, at, lambda name: os.kill(os.getpid(), signal.SIGKILL)):
                work()
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the child failed; its error is in stderr"
    return os.WIFSIGNALED(status)
