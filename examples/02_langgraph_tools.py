"""An agent makes six tool calls at once, then two agents edit one file: unguarded, and with `GuardMiddleware`.

    python examples/02_langgraph_tools.py

The models are scripted, so no key is needed; the agents, their parallel tool calls and the files are real.
"""

import json
import tempfile
import time
from pathlib import Path

from agentguard_langgraph import GuardMiddleware, tool
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Guard, path


class Scripted(BaseChatModel):
    """A model whose answer is computed from the tool answers so far: a list of tool calls, empty when it is done."""

    script: object

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, *args, **kwargs):
        answers = [message for message in messages if isinstance(message, ToolMessage)]
        calls = [
            {"name": name, "args": arguments, "id": f"call-{len(answers)}-{number}"}
            for number, (name, arguments) in enumerate(self.script(answers))
        ]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("" if calls else "Done.", tool_calls=calls))])


@tool(updates="findings.json")  # computed from the current content: calls are only put in a line
def add_finding(text: str) -> str:
    """Add a finding."""
    file = path("findings.json")
    findings = json.loads(file.read_text())
    time.sleep(0.05)  # the other calls read the same findings meanwhile
    file.write_text(json.dumps([*findings, text]))
    return "added"


@tool(reads="report.md")
def read_report() -> str:
    """Read the report."""
    return path("report.md").read_text()


@tool(writes="report.md")  # replaces what was read before: refused when it has changed since
def write_report(text: str) -> str:
    """Replace the report."""
    path("report.md").write_text(text)
    return "written"


def six_at_once(answers):
    return [] if answers else [("add_finding", {"text": f"finding {number}"}) for number in range(6)]


def editor(name, meanwhile):
    """Reads, thinks, writes; after a refusal it does so again, as a real model does when it is told to."""

    def script(answers):
        if not answers or answers[-1].status == "error":
            if answers:
                print(f"  {name} is told: {answers[-1].content.splitlines()[0]}")
            return [("read_report", {})]
        if answers[-1].content == "written":
            return []
        if len(answers) == 1:
            meanwhile()  # while this model thinks, another agent edits the report
        return [("write_report", {"text": f"{answers[-1].content}- {name} was here\n"})]

    return script


def run(folder, title, *middleware):
    (folder / "findings.json").write_text("[]")
    (folder / "report.md").write_text("# Report\n")
    start = {"messages": [HumanMessage("Go.")]}
    create_agent(Scripted(script=six_at_once), [add_finding], middleware=middleware).invoke(start)
    tools = [read_report, write_report]
    bob = create_agent(Scripted(script=editor("Bob", lambda: None)), tools, middleware=middleware, name="Bob")
    ann = Scripted(script=editor("Ann", lambda: bob.invoke(start)))
    create_agent(ann, tools, middleware=middleware, name="Ann").invoke(start)
    try:
        kept = len(json.loads((folder / "findings.json").read_text()))
    except ValueError:
        kept = 0  # two writers left a mixture that nobody can read
    edits = (folder / "report.md").read_text().count("was here")
    print(f"{title}: {kept} of 6 findings, {edits} of 2 edits of the report are there")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(root=folder)
        run(Path(folder), "without the guard")
        run(Path(folder), "with the guard", GuardMiddleware(guard))
