"""`conflicts/`: what was refused is kept, with a note, for a person to look at. Nothing here is ever deleted."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .home import Home, make_private

if TYPE_CHECKING:
    from .merge import Conflict

__all__ = ["keep", "keep_files", "park"]


def keep(home: Home, folder: Path, why: str) -> Path:
    """Move a call's copies here; returns where. Raises OSError."""
    kept = _new(home, why)
    for entry in folder.iterdir():
        shutil.move(str(entry), kept / entry.name)
    shutil.rmtree(folder, ignore_errors=True)
    return kept


def keep_files(home: Home, files: Iterable[Path], why: str) -> Path:
    """Move single files here; returns where. Raises OSError."""
    kept = _new(home, why)
    for number, file in enumerate(files):
        place = kept / file.name
        if place.exists():  # one of another folder
            place = kept / str(number) / file.name
            make_private(place.parent)
        shutil.move(str(file), place)
    return kept


def park(
    home: Home, resource: str, strategy: str, sides: Mapping[str, bytes | None], conflicts: Sequence[Conflict]
) -> Path:
    """Keep the base and every side of a merge whose conflicting places stayed as they were. Labels are data."""
    places = "\n".join(f"  {conflict}" for conflict in conflicts)
    folders = {f"{number:03d}": label for number, label in enumerate(sides)}
    listed = "\n".join(f"  {folder}/  {label}" for folder, label in folders.items())
    why = f"{resource} ({strategy}): parked; these places have the base, or the side that on_conflict names:"
    kept = _new(home, f"{why}\n{places}\nSides:\n{listed}")
    for folder, label in folders.items():
        data = sides[label]
        if data is not None:
            (kept / folder).mkdir(mode=0o700)
            (kept / folder / Path(resource).name).write_bytes(data)
    return kept


def _new(home: Home, why: str) -> Path:
    kept = home.folder / "conflicts" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    make_private(kept)
    (kept / "NOTE.txt").write_text(why + "\n", encoding="utf-8", errors="replace")
    return kept
