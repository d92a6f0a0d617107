"""Any history of reads, writes, updates and foreign edits, beside a model that knows what each agent has seen."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentguard import Guard, StaleWrite, path
from agentguard.freshness import Freshness

AGENTS = st.sampled_from(["ann", "bob"])
NAMES = st.sampled_from(["a.txt", "strict.txt", "db:x"])
FILES = st.sampled_from(["a.txt", "strict.txt"])
TEXTS = st.sampled_from(["", "one", "two", "one\ntwo\n"])

_NOTHING = object()


class Histories(RuleBasedStateMachine):
    """The model: the content of everything, and in which content each agent has last seen it."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.guards = [
            Guard(root=self.root, resources={"strict.txt": {"require_read": True}}) for _ in range(2)
        ]  # two: as good as two processes, but for what only a process knows
        self.content: dict[str, object] = {"a.txt": None, "strict.txt": None, "db:x": 0}
        self.seen: dict[tuple[str, str], object] = {}
        self.changes = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def guard(self, agent: str) -> Guard:
        return self.guards[agent == "bob"]

    def put(self, name: str, text: str) -> object:
        """What a tool does to a resource; its new content in the model."""
        if name.startswith("db:"):
            self.changes += 1
            return self.changes  # whatever it did: for all that anybody knows it is another one
        path(name).write_text(text)
        return text

    @rule(agent=AGENTS, name=NAMES)
    def read(self, agent: str, name: str) -> None:
        guard = self.guard(agent)
        with guard.agent(agent), guard.hold(reads=name):
            if not name.startswith("db:"):
                file = path(name)
                assert (file.read_text() if file.exists() else None) == self.content[name]
        self.seen[agent, name] = self.content[name]

    @rule(agent=AGENTS, name=NAMES, text=TEXTS, fails=st.booleans())
    def write(self, agent: str, name: str, text: str, fails: bool) -> None:
        guard = self.guard(agent)
        seen = self.seen.get((agent, name), _NOTHING)
        must_read = name == "strict.txt" and self.content[name] is not None
        stale = must_read if seen is _NOTHING else seen != self.content[name]

        def body() -> object:
            made = self.put(name, text)
            if fails:
                raise KeyError("bug")
            return made

        write = guard.wrap(body, writes=name)
        with guard.agent(agent):
            if stale:
                with pytest.raises(StaleWrite):
                    write()
                if self.content[name] is None and seen is not _NOTHING:
                    self.seen[agent, name] = None  # the refusal itself has said so
            elif fails:
                with pytest.raises(KeyError):
                    write()
                if name.startswith("db:"):
                    self.content[name] = self.changes
            else:
                self.content[name] = write()
                if seen is not _NOTHING or (name == "strict.txt"):
                    self.seen[agent, name] = self.content[name]

    @rule(agent=AGENTS, name=NAMES, text=TEXTS)
    def update(self, agent: str, name: str, text: str) -> None:
        guard = self.guard(agent)
        known = self.seen.get((agent, name), _NOTHING) == self.content[name]
        with guard.agent(agent):
            self.content[name] = guard.wrap(lambda: self.put(name, text), updates=name)()
        if known:
            self.seen[agent, name] = self.content[name]

    @rule(name=FILES, text=TEXTS)
    def an_editor(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)
        self.content[name] = text

    @rule(name=FILES)
    def somebody_deletes(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        self.content[name] = None

    @rule(name=FILES, at=st.integers(1, 2**40))
    def somebody_touches(self, name: str, at: int) -> None:
        if self.content[name] is not None:
            os.utime(self.root / name, ns=(at, at))

    @rule(name=FILES)
    def somebody_saves_it_alike(self, name: str) -> None:
        if self.content[name] is not None:
            other = self.root / "other"
            shutil.copyfile(self.root / name, other)
            os.replace(other, self.root / name)

    @invariant()
    def nothing_is_lost(self) -> None:
        for name in ("a.txt", "strict.txt"):
            file = self.root / name
            assert (file.read_text() if file.exists() else None) == self.content[name]


def run(examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, phases=phases or tuple(Phase)),
    )


def test_every_history_is_as_the_model_says() -> None:
    run(60)


@pytest.mark.parametrize("what", ["check", "note", "end"])
def test_the_model_tells_when_a_part_is_missing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Freshness, what, lambda self, *_: None)
    with pytest.raises((AssertionError, pytest.fail.Exception, StaleWrite, KeyError)):
        run(60, Phase.generate)


@pytest.mark.soak
def test_every_history_is_as_the_model_says_for_long() -> None:
    run(3000)
