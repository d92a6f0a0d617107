"""What stands in a lock file. Byte 0 is left alone: on Windows the lock itself lies on it.

16   magic; a byte: somebody is queued; a byte: no directory above is locked as such (see `directory.py`); two zeros
24   token of the last exclusive grant, boot it was issued in, process, since, length, "host agent run tool"
352  the same of the last reader, without token and boot
656  the last change: token it was made under, four numbers of the caller, then as above, without token and boot
1024 length of the key, key

Numbers are eight bytes, aligned and little-endian, so that a mapped file is read and written by whole words.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path

from .contract import Change, Holder, Mode, Owner, this_host
from .forks import after_fork

__all__ = [
    "BOOTED",
    "CALM",
    "CHANGE",
    "CHANGED",
    "CHANGED_AT",
    "CHANGE_SIZE",
    "CLEAR",
    "GRANT",
    "HEAD",
    "HEAD_AT",
    "HOLDER_AT",
    "KEY",
    "MAGIC",
    "QUEUED",
    "QUIET",
    "READER",
    "SINCE",
    "TOKEN",
    "file_name",
    "key_block",
    "next_token",
    "pack_change",
    "pack_grant",
    "pack_holder",
    "read_key",
    "unpack",
    "unpack_change",
]

MAGIC = b"AGL1"
HEAD_AT = 16
HEAD = struct.Struct("<4sB3xQQ")
QUEUED, CLEAR = 20, 21
GRANT, READER, CHANGE, KEY = 24, 352, 656, 1024
HOLDER_AT = 40
# Words: where they are in a mapped file; QUIET holds `CALM` while nobody is queued.
TOKEN, BOOTED, QUIET, SINCE = 3, 4, 2, 6
CHANGED, CHANGED_AT = 82, 88  # the token of the last change, and its time
CALM = int.from_bytes(MAGIC, "little")
_TOKEN = struct.Struct("<QQ")
_HOLDER = struct.Struct("<QdQ")
_pack_token, _pack_holder = _TOKEN.pack, _HOLDER.pack
_now = time.time
_CHANGE = struct.Struct("<QQQQQ")
_TEXT = 280
CHANGE_SIZE = _CHANGE.size + _HOLDER.size + _TEXT


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
    return last + 1 if last and boot == BOOT else max(last + 1, time.time_ns() // 1000)


def _after_fork() -> None:
    global _pid
    _pid = os.getpid()


_pid = os.getpid()
after_fork(_after_fork)


def text_of(owner: Owner) -> bytes:
    """An owner as lock files tell it; made once for each `Owner`."""
    text = owner.packed
    if not text:
        parts = (this_host(), owner.agent, owner.run, owner.tool)
        text = "\0".join(parts).encode("utf-8", "replace")
        if len(text) > _TEXT:
            text = "\0".join(part[:17] for part in parts).encode("utf-8", "replace")
        object.__setattr__(owner, "packed", text)
    return text


def pack_holder(owner: Owner) -> bytes:
    """Process, since, length and text: what both kinds of holders leave."""
    text = owner.packed or text_of(owner)
    return _pack_holder(_pid, _now(), len(text)) + text


def pack_grant(token: int, owner: Owner) -> bytes:
    """Token and description of an exclusive holder, for one write: so that one is never there without the other."""
    return _pack_token(token, BOOT) + pack_holder(owner)


def pack_change(change: tuple[int, int, int, int], token: int, owner: Owner) -> bytes:
    """What `unpack_change` reads."""
    return _CHANGE.pack(token, *(number & 0xFFFFFFFFFFFFFFFF for number in change)) + pack_holder(owner)


def unpack_change(data: bytes) -> Change | None:
    """The last change that a lock file tells, from `CHANGE` on; None before the first."""
    if len(data) < _CHANGE.size + _HOLDER.size:
        return None
    token, *numbers = _CHANGE.unpack_from(data)
    _, at, host, agent, run, tool = _unpack_holder(data, _CHANGE.size)
    if not token:
        return None
    return Change(token, (numbers[0], numbers[1], numbers[2], numbers[3]), at, agent, run, tool, host)


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
    token = _TOKEN.unpack_from(data, GRANT)[0] if len(data) >= GRANT + _TOKEN.size else 0
    pid, since, host, agent, run, tool = _unpack_holder(data, HOLDER_AT if mode is Mode.EXCLUSIVE else READER)
    return Holder(key, mode, agent, run, tool, pid, host, since, token)


def _unpack_holder(data: bytes, at: int) -> tuple[int, float, str, str, str, str]:
    try:
        pid, since, length = _HOLDER.unpack_from(data, at)
    except struct.error:
        pid = since = length = 0
    start = at + _HOLDER.size
    fields = data[start : start + min(length, _TEXT)].decode("utf-8", "replace").split("\0")
    host, agent, run, tool = fields if len(fields) == 4 else ("?", "?", "?", "?")
    return pid, float(since) if 0 <= since < 1e11 else 0.0, host, agent, run, tool
