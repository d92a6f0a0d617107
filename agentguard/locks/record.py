"""What stands in a lock file. Byte 0 is left alone: on Windows the lock itself lies on it.

16  magic, then one byte each: the directory is locked as such; all its intentions are kept in the open; queued
24  token of the last exclusive grant, boot it was issued in, process, since, length, "host agent run tool"
512 the same of the last reader, without token and boot
1024 length of the key, key
"""

from __future__ import annotations

import hashlib
import struct
import time
from pathlib import Path

from .contract import Holder, Mode, Owner, this_host, this_process

__all__ = [
    "DRAINED",
    "GRANT",
    "HEAD",
    "HEAD_AT",
    "KEY",
    "MAGIC",
    "MARKED",
    "QUEUED",
    "READER",
    "file_name",
    "key_block",
    "next_token",
    "pack_grant",
    "pack_reader",
    "read_key",
    "unpack",
]

MAGIC = b"AGL1"
HEAD_AT = 16
HEAD = struct.Struct("<4s4BQQ")
MARKED, DRAINED, QUEUED = 20, 21, 22
GRANT, READER, KEY = 24, 512, 1024
_GRANT = struct.Struct("<QQQdH")
_READER = struct.Struct("<QdH")
_TEXT = 440


def file_name(key: str) -> str:
    """The name of a key's lock file: never made of the key itself."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _boot() -> int:
    """A number of this boot of the machine; 0 where it cannot be had (then a power cut may repeat a token)."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


BOOT = _boot()


def next_token(last: int, boot: int) -> int:
    """The token after `last`.

    A new file, or one whose latest tokens a power cut may have taken, goes on at the clock (microseconds): above
    anything counted up to now, so that a deleted lock file does not bring old tokens back.
    """
    if last and boot == BOOT:
        return last + 1
    return max(last + 1, time.time_ns() // 1000)


def _text(owner: Owner) -> bytes:
    text = f"{this_host()}\0{owner.agent}\0{owner.run}\0{owner.tool}".encode("utf-8", "replace")
    if len(text) <= _TEXT:
        return text
    short = "\0".join(part[:25] for part in (this_host(), owner.agent, owner.run, owner.tool))
    return short.encode("utf-8", "replace")


def pack_grant(token: int, owner: Owner) -> bytes:
    """Token and description of an exclusive holder: one write, so that one is never there without the other."""
    text = _text(owner)
    return _GRANT.pack(token, BOOT, this_process(), time.time(), len(text)) + text


def pack_reader(owner: Owner) -> bytes:
    text = _text(owner)
    return _READER.pack(this_process(), time.time(), len(text)) + text


def key_block(key: str) -> bytes:
    encoded = key.encode("utf-8", "surrogatepass")
    return struct.pack("<I", len(encoded)) + encoded


def read_key(data: bytes) -> str | None:
    """The key of a lock file's content; None when it has none yet."""
    if len(data) < KEY + 4 or data[HEAD_AT : HEAD_AT + 4] != MAGIC:
        return None
    (length,) = struct.unpack_from("<I", data, KEY)
    encoded = data[KEY + 4 : KEY + 4 + length]
    return encoded.decode("utf-8", "surrogatepass") if len(encoded) == length else None


def unpack(data: bytes, key: str, mode: Mode) -> Holder:
    """The holder that a lock file's content describes. Other people's bytes: whatever stands there, no error."""
    try:
        token, _, pid, since, length = _GRANT.unpack_from(data, GRANT)
        start = GRANT + _GRANT.size
        if mode is not Mode.EXCLUSIVE:
            pid, since, length = _READER.unpack_from(data, READER)
            start = READER + _READER.size
    except struct.error:
        token = pid = since = length = start = 0
    fields = data[start : start + min(length, _TEXT)].decode("utf-8", "replace").split("\0")
    host, agent, run, tool = (*fields, "?", "?", "?", "?")[:4] if len(fields) == 4 else ("?", "?", "?", "?")
    if not 0 <= since < 1e11:
        since = 0.0
    return Holder(key, mode, agent, run, tool, pid, host, float(since), token)
