"""Threads that wait in the kernel for locks that other processes hold, so that nobody else has to."""

from __future__ import annotations

import _thread
import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Pumps"]

Job = Callable[[], None]

IDLE_SECONDS = 5.0  # an idle thread waits so long for its next key


class Pumps:
    """At most `limit` threads, each waiting for one contended key; what is beyond that is polled by one more.

    The threads are bare (`_thread`): starting one does not wait for it, which matters under the mutex, and the
    interpreter does not join them at exit. Their stacks keep the default size: it is address space, not memory, and
    `threading.stack_size` would change it for threads that others start at the same moment.
    """

    def __init__(self, limit: int = 2048) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget all threads: in the child of a fork there are none."""
        self._mutex = threading.Lock()
        self.threads = 0
        self._idle = 0  # threads waiting for a job that has not been put yet
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._backlog: deque[Job] = deque()
        self._polling = False

    def submit(self, wait: Job, poll: Job) -> None:
        """Run `wait`, which may block, on a thread of its own; or `poll` now and then, which may not.

        Raises OSError when there is no thread at all and none can be started.
        """
        with self._mutex:
            if self._idle:
                self._idle -= 1
                self._jobs.put(wait)
            elif self.threads < self.limit and self._start(self._work, wait):
                self.threads += 1
            else:
                self._polling = self._polling or self._start(self._poll)
                if not self._polling and not self.threads:
                    raise OSError(errno.EAGAIN, "no thread can be started to wait for another process's lock")
                self._backlog.append(poll)

    def _start(self, body: Callable[..., None], *args: Job) -> bool:
        try:
            _thread.start_new_thread(body, args)
        except RuntimeError:  # out of threads, or the interpreter is shutting down
            return False
        return True

    def _work(self, job: Job | None) -> None:
        while job is not None:
            job()
            job = None  # an idle thread keeps no table alive
            with self._mutex:
                if self._backlog:
                    self._jobs.put(self._backlog.popleft())
                else:
                    self._idle += 1
            job = self._next()

    def _next(self) -> Job | None:
        try:
            return self._jobs.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            with self._mutex:
                try:
                    return self._jobs.get_nowait()
                except queue.Empty:
                    self._idle -= 1
                    self.threads -= 1
                    return None

    def _poll(self) -> None:
        while True:
            started = time.monotonic()
            with self._mutex:
                if not self._backlog:
                    self._polling = False
                    return
                jobs = [*self._backlog]
                self._backlog.clear()
            for job in jobs:
                job()
            # However many keys there are, trying them takes at most a thirtieth of a core.
            time.sleep(max(0.002, 30 * (time.monotonic() - started)))
