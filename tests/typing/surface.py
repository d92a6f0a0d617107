"""Checked by mypy and pyright, never run: what the public surface looks like to a type checker."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_type

from agentguard import Guard, Hold, JoinReport, declare, path


@declare(writes="notes/{topic}.md", updates=["run.log"])
def note(topic: str, text: str = "") -> int:
    assert_type(path("run.log"), Path)
    return len(text)


assert_type(note("a"), int)  # the function itself

guard = Guard(root=".")
guarded = guard.wrap(note)
assert_type(guarded("a", text="b"), int)
guarded(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@guard.wrap
async def later(number: int) -> str:
    return str(number)


async def main() -> None:
    assert_type(await later(1), str)
    async with guard.hold(writes="a", timeout=0) as hold:
        assert_type(hold, Hold)
        assert_type(hold.token("a"), int)
    assert_type(await guard.ajoin(), JoinReport)
    assert_type(await guard.aupdate("a.json", lambda value: 1), int)


assert_type(guard.update("a.json", lambda value: {"n": 1}), dict[str, int])
assert_type(guard.join(), JoinReport)
