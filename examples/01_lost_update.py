"""Eight agents write into one file: without the guard most of their work is gone, with it all of it is there.

No framework and no model: each agent is a thread that calls a tool. Run it: python examples/01_lost_update.py
"""

import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path

from agentguard import Guard, declare, path

AGENTS, FINDINGS = 8, 5


@declare(updates="findings.json")  # what the tool touches; the tool itself stays as it was
def add_finding(text: str) -> str:
    file = path("findings.json")  # the file, or this call's own copy of it when the call is guarded
    findings = json.loads(file.read_text())
    time.sleep(0.005)  # the tool thinks; meanwhile the others read the same findings
    findings.append(text)
    file.write_text(json.dumps(findings))
    return f"{len(findings)} findings now"


def work(tool, name):
    for number in range(FINDINGS):
        # Unguarded, the file may be half written just now: one more finding that is lost.
        with contextlib.suppress(ValueError):
            tool(f"finding {number} of {name}")


def run(tool, file):
    file.write_text("[]")
    agents = [threading.Thread(target=work, args=(tool, f"agent-{number}")) for number in range(AGENTS)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    try:
        return len(json.loads(file.read_text()))
    except ValueError:
        return 0  # two writers left a mixture that nobody can read


with tempfile.TemporaryDirectory() as folder:
    guard = Guard(root=folder)
    findings = Path(folder) / "findings.json"
    expected = AGENTS * FINDINGS
    kept = run(add_finding, findings)
    print(f"without the guard: {kept:3} of {expected} findings are in the file, {expected - kept} are lost")
    kept = run(guard.wrap(add_finding), findings)
    print(f"with the guard:    {kept:3} of {expected} findings are in the file, {expected - kept} are lost")
