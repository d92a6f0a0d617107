"""Stands for a package of somebody else: it knows nothing of AgentGuard, and nobody will change it."""

from pathlib import Path


def read_file(file_path: str) -> str:
    """Read a file."""
    return Path(file_path).read_text()


def write_file(file_path: str, text: str) -> str:
    """Write a file."""
    Path(file_path).write_text(text)
    return f"File written successfully to {file_path}."
