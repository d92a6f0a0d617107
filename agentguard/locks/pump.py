"""Threads that wait in the kernel for locks that other processes hold, so that nobody else has to."""

from __future__ import annotations

import _thread
import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .native import hurry

__all__ = ["Job", "Pumps"]

# So many threads wait in the kernel. Where more are woken at once, the time goes into their taking turns: a thousand
# keys that come free together are then served several times sooner by one thread that looks at all of them.
LIMIT = 64
IDLE_SECONDS = 5.0  # an idle thread waits so long for its next key


class Job(Protocol):
    """One key that is waited for."""

    def wait(self) -> None:
        """Wait for it in the kernel, to the end."""
        ...

    def poll(self) -> bool:
        """Look whether it is there; the same, or `wait`, may follow. True: it is done with, once `flush` was called."""
        ...


class _Idle:
    """A thread without a job: whoever takes it out of `Pumps.idle` gives it one and releases `bell`."""

    __slots__ = ("bell", "job")

    def __init__(self) -> None:
        self.bell = _thread.allocate_lock()
        self.bell.acquire()
        self.job: Job | None = None


class Pumps:
    """At most `limit` threads, each waiting for one contended key; what is beyond that is polled by one more.

    The threads are bare (`_thread`): starting one does not wait for it, which matters under the mutex, and the
    interpreter does not join them at exit. Their stacks keep the default size: it is address space, not memory, and
    `threading.stack_size` would change it for threads that others start at the same moment. Where many come back at
    once none waits for another: going idle takes no mutex.
    """

    def __init__(self, flush: Callable[[], None], limit: int = LIMIT) -> None:
        """`flush` is called after each round of polling that came to something."""
        self.limit = limit
        self._flush = flush
        self.reset()

    def reset(self) -> None:
        """Forget all threads: in the child of a fork there are none."""
        self._mutex = threading.Lock()
        self.threads = 0
        self.idle: deque[_Idle] = deque()  # the last to come is the first to go: the others can end
        self._backlog: deque[Job] = deque()
        self._polling = False
        self._stir = threading.Event()  # something has moved: more may have

    def submit(self, job: Job) -> None:
        """Have a job done, on a thread of its own if there is one.

        Raises OSError when there is no thread at all and none can be started.
        """
        try:
            idle = self.idle.pop()
        except IndexError:
            pass
        else:
            idle.job = job
            idle.bell.release()
            return
        with self._mutex:
            if self.threads < self.limit and self._start(self._work, job):
                self.threads += 1
                return
            self._backlog.append(job)
            if not self._polling:
                self._polling = self._start(self._poll)
                if not self._polling and not self.threads:
                    self._backlog.remove(job)
                    raise OSError(errno.EAGAIN, "no thread can be started to wait for another process's lock")

    def _start(self, body: Callable[..., None], *args: Job) -> bool:
        try:
            _thread.start_new_thread(body, args)
        except RuntimeError:  # out of threads, or the interpreter is shutting down
            return False
        return True

    def _work(self, job: Job | None) -> None:
        me = _Idle()
        while job is not None:
            job.wait()
            job = me.job = None  # an idle thread keeps no table alive
            if self._backlog:
                self._stir.set()
            self.idle.append(me)
            if not me.bell.acquire(timeout=IDLE_SECONDS):
                try:
                    self.idle.remove(me)
                except ValueError:
                    me.bell.acquire()  # somebody has just taken us
                else:
                    break
            job = me.job
        with self._mutex:
            self.threads -= 1

    def _poll(self) -> None:
        hurry()
        while True:
            started = time.monotonic()
            done = 0
            for _ in range(len(self._backlog)):
                job = self._backlog.popleft()
                if job.poll():
                    done += 1
                else:
                    self._backlog.append(job)
            if done:
                self._flush()
            with self._mutex:
                if not self._backlog:
                    self._polling = False
                    return
            if done:
                continue
            self._promote()
            # However many keys there are, trying them takes at most a thirtieth of a core (their first time is longer).
            took = min(time.monotonic() - started, 5e-6 * len(self._backlog))
            self._stir.wait(max(0.002, 30 * took))
            self._stir.clear()

    def _promote(self) -> None:
        """Nothing moves: let threads that have nothing to do wait for what is polled."""
        while self._backlog:
            try:
                idle = self.idle.pop()
            except IndexError:
                return
            idle.job = self._backlog.popleft()  # only this thread takes from the backlog
            idle.bell.release()
