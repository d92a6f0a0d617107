"""Four agents of a crew record their findings in one file, at the same time: unguarded, serialized, and sharded.

    python examples/04_crewai_tools.py

The models are scripted, so no key is needed; the crew, its threads, the tool and the file are real.
"""

import json
import os
import tempfile
import threading
from pathlib import Path

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")
scratch = tempfile.TemporaryDirectory(prefix="agentguard-example-")
os.environ.setdefault("CREWAI_STORAGE_DIR", scratch.name)

from agentguard_crewai import guard_crew, join_reports, tool  # noqa: E402
from crewai import Agent, BaseLLM, Crew, Task  # noqa: E402

from agentguard import Guard, path  # noqa: E402

NAMES, ROUNDS = ["ann", "bob", "cleo", "dan"], 5


class Scripted(BaseLLM):
    """A model that calls `add_finding` five times and is done."""

    turn: int = 0

    def supports_function_calling(self):
        return True

    def get_input_tokens_count(self, *args, **kwargs):
        return 1

    def call(self, *args, **kwargs):
        self.turn += 1
        if self.turn > ROUNDS:
            return "Recorded."
        arguments = json.dumps({"text": f"finding {self.turn} of {self.model}"})
        return [{"id": f"call_{self.turn}", "function": {"name": "add_finding", "arguments": arguments}}]


def run(folder, guard=None):
    """Kick the crew off once; returns how many findings are in the file afterwards."""
    file = folder / "findings.jsonl"
    file.write_text("")
    another = threading.Semaphore(0)  # lets the agents' calls overlap surely, instead of now and then

    @tool("add finding", updates="findings.jsonl")
    def add_finding(text: str) -> str:
        """Add a finding to findings.jsonl."""
        target = path(file)  # the file itself or, under the guard, the copy that this call works on
        before = target.read_text()
        another.release()
        another.acquire(timeout=0.01)
        target.write_text(before + json.dumps(text) + "\n")
        return "added"

    agents = [Agent(role=n, goal="find", backstory="-", llm=Scripted(model=n), tools=[add_finding]) for n in NAMES]
    tasks = [Task(description="look", expected_output="-", agent=a, async_execution=True) for a in agents]
    editor = Agent(role="editor", goal="close", backstory="-", llm=Scripted(model="editor", turn=ROUNDS))
    crew = Crew(agents=[*agents, editor], tasks=[*tasks, Task(description="close", expected_output="-", agent=editor)])
    if guard is not None:
        guard_crew(crew, guard)  # the one line
    crew.kickoff()
    return len(set(file.read_text().splitlines()))


if __name__ == "__main__":
    workspace = Path(scratch.name) / "workspace"
    workspace.mkdir()
    expected = len(NAMES) * ROUNDS
    print(f"without the guard:  {run(workspace)} of {expected} findings")
    print(f"one call at a time: {run(workspace, Guard(root=workspace))} of {expected} findings")
    sharded = Guard(root=workspace, resources={"findings.jsonl": {"mode": "shard"}})
    print(f"each in its shard:  {run(workspace, sharded)} of {expected} findings")
    print(*join_reports(sharded), sep="\n")
