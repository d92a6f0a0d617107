"""AgentGuard for CrewAI: crews whose parallel agents do not lose each other's work.

    from agentguard_crewai import guard_crew, tool

    @tool("Add finding", updates="findings.json")
    def add_finding(text: str) -> str: ...

    guard_crew(crew, Guard(root="workspace")).kickoff()

`install(guard)` does it for every crew in the process, by the tool names of the configuration.
"""

from __future__ import annotations

from . import _version

_version.require()

from . import hooks as _hooks  # noqa: E402, F401  (fills the registry)
from .crews import guard_crew, install, join_reports, uninstall  # noqa: E402
from .declaring import tool  # noqa: E402
from .tools import guard_tool  # noqa: E402

__all__ = ["guard_crew", "guard_tool", "install", "join_reports", "tool", "uninstall"]
