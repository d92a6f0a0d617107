"""The oldest LangGraph and LangChain that have every interception point the adapter stands on."""

from __future__ import annotations

import importlib.metadata
import re

OLDEST = {"langgraph": (1, 2), "langchain": (1, 3)}
INSTALL = "pip install 'agentguard[langgraph]'"


def require() -> None:
    """Raise ImportError, with the command to run, when LangGraph or LangChain is missing or too old."""
    for name, oldest in OLDEST.items():
        wanted = ".".join(map(str, oldest))
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ImportError(f"agentguard_langgraph needs {name} >= {wanted}: {INSTALL}", name=name) from None
        if parsed(found) < oldest:
            raise ImportError(f"agentguard_langgraph needs {name} >= {wanted}, not {found}: {INSTALL}", name=name)


def parsed(version: str) -> tuple[int, ...]:
    """The release part of a version, as numbers; what follows it (rc1, .post2) decides nothing here."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
