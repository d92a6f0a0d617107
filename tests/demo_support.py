"""A stand-in for a framework: the demo's agents as threads or asyncio tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from agentguard import Guard, demo
from agentguard.demo import Gate, agent_names, kind_of, settings


def run(
    kind: str,
    mode: str,
    folder: Path,
    *,
    agents: int,
    rounds: int,
    asynchronous: bool,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Run as the adapters' demos do, with their signature."""
    gate = Gate(mode, agents * rounds)

    def tool(agent: str, n: int) -> str:
        return demo.apply(kind, agent, n, folder, gate)

    async def atool(agent: str, n: int) -> str:
        return await demo.aapply(kind, agent, n, folder, gate.wait)

    guard = None
    if mode != "off":
        guard = Guard(folder, **settings(mode))
        tool = guard.wrap(tool, updates=kind_of(kind).resource)
        atool = guard.wrap(atool, updates=kind_of(kind).resource)
    who = guard.agent if guard is not None else lambda name: contextlib.nullcontext()
    failed: list[BaseException] = []

    def work(agent: str) -> None:
        try:
            with who(agent):
                for n in range(rounds):
                    tool(agent, n)
                    progress()
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failed.append(error)

    async def awork(agent: str) -> None:
        with who(agent):
            for n in range(rounds):
                await atool(agent, n)
                progress()

    async def everyone() -> None:
        await asyncio.gather(*(asyncio.create_task(awork(agent)) for agent in agent_names(agents)))

    if asynchronous:
        asyncio.run(everyone())
    else:
        threads = [threading.Thread(target=work, args=(agent,)) for agent in agent_names(agents)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
    if guard is not None:
        guard.join()
