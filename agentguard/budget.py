"""How much a model is told: lengths in tokens, estimated from above without anybody's tokenizer."""

from __future__ import annotations

import re

__all__ = ["LIMIT", "clip", "fit", "tokens"]

LIMIT = 280  # tokens of a refusal; the 20 up to the promised 300 are for what an adapter adds

_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|\s+|[\x21-\x7e]|[^\x00-\x7f]")


def tokens(text: str) -> int:
    """At most so many tokens, for the tokenizers of today's models: words by the syllable, hashes by their pieces."""
    return sum(map(_cost, _PIECE.findall(text)))


def _cost(piece: str) -> int:
    first = piece[0]
    if first > "\x7f":
        return 2 if first < "\U00010000" else 4
    if first.isalpha():
        # Capitals in a row, as in constants and base64, are cut short.
        return (len(piece) + 3) // 4 if piece[1:].islower() or len(piece) < 3 else (len(piece) + 1) // 2
    if first.isdigit():
        return (len(piece) + 2) // 3
    if first.isspace():
        return piece.count("\n") + (len(piece) > 1)
    return 1


def fit(text: str, limit: int = LIMIT) -> str:
    """The text, cut at its end to at most `limit` tokens."""
    if len(text) * 4 <= limit or tokens(text) <= limit:
        return text
    room, end = limit - _cost("…"), 0
    for piece in _PIECE.finditer(text):
        room -= _cost(piece[0])
        if room < 0:
            break
        end = piece.end()
    return text[:end].rstrip() + " …"


def clip(name: str, length: int = 80) -> str:
    """A name of at most `length` characters: its middle goes."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
