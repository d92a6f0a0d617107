"""Two agents edit one file with tools that nobody changed: agentguard.toml guards them by their names.

Both read the notes, both think, both write their version back. Without the guard the second write silently undoes the
first; with it the second agent is told what has happened, reads again, and both edits stay. Plain functions, and the
tools of LangChain and CrewAI where they are installed. Run it: python examples/05_config_only/run.py
"""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import third_party

from agentguard import AgentGuardError, Guard

HERE = Path(__file__).parent
NOTES = HERE / "workspace" / "notes.md"
START = "# Notes\n"


def scenario(title, guard, call):
    """What two scripted agents do. `call(tool, **arguments)` returns what the model gets to read."""
    NOTES.write_text(START)

    def act(agent, tool, **arguments):
        with guard.agent(agent):  # in a crew or a graph the adapter says who calls
            return call(tool, file_path="notes.md", **arguments)

    seen = {agent: act(agent, "read_file") for agent in ("researcher", "writer")}
    for agent, notes in seen.items():
        answer = act(agent, "write_file", text=f"{notes}- by the {agent}\n")
        if "successfully" not in answer:
            print(f"  the {agent} is told: {answer.strip()}")
            act(agent, "write_file", text=f"{act(agent, 'read_file')}- by the {agent}\n")
    kept = sum(f"by the {agent}" in NOTES.read_text() for agent in seen)
    print(f"{title}: {kept} of 2 edits are in notes.md")


def plain_functions(guard):
    tools = {"read_file": third_party.read_file, "write_file": third_party.write_file}
    scenario("functions, no guard", guard, lambda name, **args: tools[name](**args))
    guarded = {name: guard.wrap(tool) for name, tool in tools.items()}

    def call(name, **args):
        try:
            return guarded[name](**args)
        except AgentGuardError as refused:
            return str(refused)

    scenario("functions, guarded", guard, call)


def langchain_tools(guard):
    from agentguard_langgraph import guard_tools

    if find_spec("langchain_community"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that package announces its end at import
            from langchain_community.tools import ReadFileTool, WriteFileTool
        tools = [ReadFileTool(root_dir=str(NOTES.parent)), WriteFileTool(root_dir=str(NOTES.parent))]
    else:
        from langchain_core.tools import tool

        tools = [tool(third_party.read_file), tool(third_party.write_file)]

    def calling(tools):
        named = {tool.name: tool for tool in tools}
        return lambda name, **args: (
            named[name].invoke({"type": "tool_call", "name": name, "args": args, "id": "1"}).content
        )

    scenario("LangChain, no guard", guard, calling(tools))
    scenario("LangChain, guarded", guard, calling(guard_tools(tools, guard)))


def crewai_tools(guard):
    from agentguard_crewai import guard_tool
    from crewai.tools import tool

    tools = {name: tool(name)(getattr(third_party, name)) for name in ("read_file", "write_file")}

    def call(name, **args):
        answer = tools[name].run(**args)
        return str(getattr(answer, "message", answer))  # a refusal is CrewAI's ToolFailure

    scenario("CrewAI, no guard", guard, call)
    for one in tools.values():
        guard_tool(one, guard)  # install(guard) does this for every crew of the process
    scenario("CrewAI, guarded", guard, call)


if __name__ == "__main__":
    os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")
    NOTES.parent.mkdir(exist_ok=True)
    os.chdir(NOTES.parent)
    guard = Guard.from_config(HERE / "agentguard.toml")
    plain_functions(guard)
    if find_spec("langgraph") and find_spec("langchain"):
        langchain_tools(guard)
    if find_spec("crewai"):
        crewai_tools(guard)
