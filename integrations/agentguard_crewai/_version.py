"""The oldest CrewAI that has every interception point the adapter stands on."""

from __future__ import annotations

import importlib.metadata
import re

OLDEST = (1, 15, 17)
INSTALL = "pip install 'agentguard[crewai]'"


def require() -> None:
    """Raise ImportError, with the command to run, when CrewAI is missing or older than `OLDEST`."""
    wanted = ".".join(map(str, OLDEST))
    try:
        found = importlib.metadata.version("crewai")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"agentguard_crewai needs crewai >= {wanted}: {INSTALL}", name="crewai") from None
    if parsed(found) < OLDEST:
        raise ImportError(f"agentguard_crewai needs crewai >= {wanted}, not {found}: {INSTALL}", name="crewai")


def parsed(version: str) -> tuple[int, ...]:
    """The release part of a version, as numbers; what follows it (rc1, .post2) decides nothing here."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
