"""TOML by its values, written back into the base's own tree so that comments and order stay."""

from __future__ import annotations

from typing import Any

from agentguard.exceptions import ConfigError
from agentguard.merge.documents import Unreadable
from agentguard.merge.graft import decoded, finite, graft

try:
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError
except ModuleNotFoundError as missing:
    raise ConfigError(
        "merging TOML needs the package tomlkit: pip install tomlkit", key="merge", value="toml"
    ) from missing


class Toml:
    name = "TOML"

    def parse(self, data: bytes) -> Any:
        value = _load(decoded(data)).unwrap()
        _check(value)
        return value

    def write(self, value: Any, like: bytes, old: Any) -> bytes:
        if type(value) is not dict:
            raise Unreadable("a TOML file is a table")
        try:
            return tomlkit.dumps(graft(_load(decoded(like)), old, value)).encode()
        except (TOMLKitError, ValueError, TypeError) as error:  # TOML has no null, and not every table can grow
            raise Unreadable(f"a change cannot be put into this file ({error})") from None

    def loses(self, like: bytes, old: Any) -> bool:
        return True


def _load(text: str) -> Any:
    try:
        return tomlkit.parse(text)
    except ParseError as error:
        raise Unreadable(str(error).partition(" at line ")[0], error.line, error.col + 1) from None
    except (TOMLKitError, ValueError) as error:
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None


def _check(value: Any) -> None:
    if isinstance(value, float):
        finite(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item)
