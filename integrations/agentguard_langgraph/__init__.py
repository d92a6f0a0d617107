"""AgentGuard for LangGraph and LangChain: guarded tools, nodes, agents, and graphs whose shards are merged at joins.

graph = guard_graph(builder, guard)                     # the whole graph: tools, identities, joins
guard_tools([add_finding], guard)                       # or only tools, wherever they are called
guarded_tool_node([add_finding], guard)
create_agent(model, tools, middleware=[GuardMiddleware(guard)])
builder.add_node("writer", guard_node(writer, guard, writes="report.md"))
"""

from __future__ import annotations

from ._version import require

require()

# only now: what follows imports both
# ruff: noqa: E402
from .declaring import tool
from .graphs import guard_graph
from .middleware import GuardMiddleware
from .nodes import guard_node
from .toolnodes import guarded_tool_node
from .tools import guard_tools

__all__ = ["GuardMiddleware", "guard_graph", "guard_node", "guard_tools", "guarded_tool_node", "tool"]
