"""How much a model is told: lengths in tokens, estimated from above without anybody's tokenizer."""

from __future__ import annotations

import re

__all__ = ["LIMIT", "clip", "fit", "tokens"]

LIMIT = 280  # tokens of a refusal; the 20 up to the promised 300 are for what an adapter adds

_PIECE = re.compile(r"[A-Za-z]+| ?[0-9]+|[ ]+|\t+|[^A-Za-z0-9 \t]")
# Words that no vocabulary has: consonants in a row, capitals inside.
_STRANGE = re.compile(r"[^aeiouyAEIOUY]{5}|^[^aeiouyAEIOUY]{4}|[A-Z].*[a-z][A-Z]|[a-z][A-Z]")
# Scripts of which vocabularies have most signs; of the others every byte may be a token.
_USUAL = re.compile(
    "[\u0080-\u07ff\u0900-\u0dff\u0e00-\u0eff\u10a0-\u10ff\u2000-\u206f\u2500-\u25ff\u3000-\u30ff\u4e00-\u9fff"
    "\uac00-\ud7a3\uff00-\uffef]"
)


def tokens(text: str) -> int:
    """At most so many tokens, for the tokenizers of today's models. It was compared with five of them; on refusals it
    is too low in one of a hundred, by less than a tenth."""
    return sum(map(_cost, _PIECE.findall(text)))


def _cost(piece: str) -> int:
    first, length = piece[0], len(piece)
    if first > "\x7f":
        return 4 if first > "\uffff" else 2 if _USUAL.match(first) else 3
    if first.isalpha():
        if length < 4:
            return 1 if length < 3 or piece[1:].islower() else 2
        if piece[1:].islower() and length <= 16 and not _STRANGE.search(piece):
            return (length + 3) // 4
        return (length * 2 + 2) // 3
    if first.isdigit() or (first == " " and piece[-1] != " "):  # no vocabulary joins a space and a digit
        return length
    if first == " ":
        return (length > 1) + length // 64
    return 1 + length // 8 if first == "\t" else 1


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


def clip(name: str, most: int = 24) -> str:
    """A name of at most `most` tokens and four times as many characters: its middle goes."""
    shown, half = name, len(name) // 2
    while len(shown) > most * 4 or tokens(shown) > most:
        half = min(half - max(1, half // 8), most * 2 - 1)
        shown = f"{name[:half]}…{name[len(name) - half :]}" if half > 0 else "…"
    return shown
