"""Merging YAML and TOML: by value, with comments, order and layout kept."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from agentguard.exceptions import MergeConflict
from agentguard.merge import Conflict, Merged, Options, merge


def merged(strategy: str, base: str, *sides: str, **options: Any) -> Merged:
    named = {f"agent{number}": side.encode() for number, side in enumerate(sides)}
    return merge(strategy, base.encode(), named, Options(resource="settings", **options))


YAML = """\
# settings
name: 'demo'   # quoted
limits:        # all in seconds
    connect: 5
    read: 10   # was 20
tags:
  - a  # first
  - b
flags: {x: no, y: 'on'}
"""

TOML = """\
# settings
name = 'demo'  # quoted

[limits]  # all in seconds
connect = 5
read = 10  # was 20

[[agents]]
name = "a"  # first
"""


def test_yaml_keeps_everybodys_comments_where_lines_can_be_merged() -> None:
    one = YAML.replace("connect: 5", "connect: 6   # faster")
    two = YAML.replace("name: 'demo'", "name: 'new'").replace("# first", "# the first")
    assert merged("yaml", YAML, one, two).value.decode() == one.replace("'demo'", "'new'").replace(
        "# first", "# the first"
    )


def test_yaml_writes_only_what_changed() -> None:
    # Both append to one list and change neighbouring lines, so lines cannot be merged and values are.
    one = YAML.replace("connect: 5", "connect: 6").replace("  - b\n", "  - b\n  - c\n").replace("x: no", "x: yes")
    two = YAML.replace("read: 10", "read: 11").replace("  - b\n", "  - b\n  - d\n").replace("y: 'on'", "y: 1")
    outcome = merged("yaml", YAML, one, two)
    assert not outcome.conflicts
    assert outcome.value.decode() == (
        YAML.replace("connect: 5", "connect: 6")
        .replace("read: 10", "read: 11")
        .replace("  - b\n", "  - b\n  - c\n  - d\n")
        .replace("x: no, y: 'on'", "x: yes, y: 1")
    )
    assert outcome.changes == {"agent0": 3, "agent1": 3}


def test_yaml_crlf() -> None:
    base, one, two = (text.replace("\n", "\r\n") for text in ("a: 1\nb: 1\n", "a: 2\nb: 1\n", "a: 1\nb: 2\n"))
    assert merged("yaml", base, one, two).value == b"a: 2\r\nb: 2\r\n"


def test_yaml_conflicts_are_by_path() -> None:
    outcome = merged("yaml", YAML, YAML.replace("read: 10", "read: 1"), YAML.replace("read: 10", "read: 2\n    z: 1"))
    assert outcome.conflicts == (
        Conflict("settings", "/limits/read", 10, {"agent0": 1, "agent1": 2}, "changed to different values"),
    )
    assert b"read: 10   # was 20\n" in outcome.value
    assert b"z: 1" in outcome.value


def test_yaml_paths_and_kinds_of_values() -> None:
    base = "n: 1\nd: 2020-01-01\nt: 2020-01-01T10:00:00Z\nf: 1.0\n1: int\nnull: null key\nb: true\n"
    outcome = merged("yaml", base, base.replace("n: 1", "n: 2"), base.replace("n: 1", "n: 3"), paths={"/n": "counter"})
    assert outcome.value.decode() == base.replace("n: 1", "n: 4")
    # A date is not the text that looks like it, 1 is not 1.0 and not true.
    for old, new in (("d: 2020-01-01", "d: '2020-01-01'"), ("f: 1.0", "f: 1"), ("b: true", "b: 1")):
        outcome = merged("yaml", base, base.replace(old, new), base.replace("n: 1", "n: 2"))
        assert outcome.value.decode() == base.replace(old, new).replace("n: 1", "n: 2")


def test_yaml_1_2_reads_no_and_on_as_texts() -> None:
    outcome = merged("yaml", "no: on\nx: 1\n", "no: off\nx: 1\n", "no: 'off'\nx: 2\n")
    assert outcome.conflicts == ()
    assert outcome.value.decode() in ("no: off\nx: 2\n", "no: 'off'\nx: 2\n")


def test_yaml_anchors_are_kept_or_refused_but_never_wrong() -> None:
    base = "a: &x {n: 1}\nb: *x\nc: 1\nd: 1\n"
    assert merged("yaml", base, base.replace("c: 1", "c: 2"), base.replace("d: 1", "d: 2")).value.decode() == (
        base.replace("c: 1", "c: 2").replace("d: 1", "d: 2")
    )
    # Only `a` is meant to change, but the file says that `b` is the same thing.
    apart = "a: {n: 2}\nb: {n: 1}\nc: 1\nd: 1\n"
    with pytest.raises(MergeConflict, match="cannot be written as YAML"):
        merged("yaml", base, apart, base.replace("c: 1\nd: 1", "c: 2\nd: 2").replace("{n: 1}", "{n: 1 }"))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("a: 1\na: 2\n", 'line 2, column 1: found duplicate key "a"'),
        ("a: [1\n", "line 2, column 1"),
        ("a: !!python/object/apply:os.system [ls]\n", "tag"),
        ("a: !mine 1\n", "the tag !mine is not merged"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("? [1, 2]\n: 3\n", "a key that is a list or a mapping"),
        ("a: .nan\n", "nan"),
        ("a: &x [*x]\n", "the alias *x stands inside itself"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("- " * 3000 + "a", "nested too deeply"),
        ("\n".join(" " * level + "a:" for level in range(300)), "nested too deeply"),
        ("\ufeffa: 1\n", "byte order mark"),
        (
            "x: &x [" + "1," * 50 + "]\ny: &y [" + "*x," * 50 + "]\nz: [" + "*y," * 50 + "]\n",
            "aliases stand for too many",
        ),
    ],
)
def test_yaml_that_cannot_be_merged_is_refused(broken: str, why: str) -> None:
    with pytest.raises(MergeConflict) as caught:
        merged("yaml", "a: 1\n", "a: 7\n", broken)
    assert why in str(caught.value)
    assert caught.value.agent == "agent1"


def test_toml_keeps_comments() -> None:
    one = TOML.replace("connect = 5", "connect = 6") + '\n[[agents]]\nname = "b"\n'
    two = TOML.replace("read = 10", "read = 11") + '\n[[agents]]\nname = "c"\n'
    outcome = merged("toml", TOML, one, two)
    assert not outcome.conflicts
    text = outcome.value.decode()
    assert text.startswith(TOML.replace("connect = 5", "connect = 6").replace("read = 10", "read = 11"))
    assert [line for line in text.splitlines() if line.startswith("name")] == [
        "name = 'demo'  # quoted",
        'name = "a"  # first',
        'name = "b"',
        'name = "c"',
    ]


def test_toml_new_tables_deleted_keys_and_lists() -> None:
    base = "keep = 1\ngone = 2  # two\nl = [1, 2]\n\n[t]\nx = 1\n"
    one = "keep = 1\nl = [1, 2, 3]\n\n[t]\nx = 1\n\n[u.v]\ny = 2\n"
    two = "keep = 1\ngone = 2  # two\nl = [1, 2, 4]\n\n[t]\nx = 2\n\n[w]\nz = 1979-05-27\n"
    outcome = merged("toml", base, one, two)
    assert not outcome.conflicts
    again = merged("toml", "", outcome.value.decode(), "")
    assert again.value == outcome.value
    assert outcome.value.decode() == (
        "keep = 1\nl = [1, 2, 3, 4]\n\n[t]\nx = 2\n\n[u.v]\ny = 2\n\n[w]\nz = 1979-05-27\n"
    )


def test_toml_conflict_and_strategy() -> None:
    outcome = merged("toml", TOML, TOML.replace("10", "11"), TOML.replace("10", "12"))
    assert [str(conflict.path) for conflict in outcome.conflicts] == ["/limits/read"]
    assert outcome.value.decode() == TOML
    outcome = merged("toml", TOML, TOML.replace("10", "11"), TOML.replace("10", "12"), paths={"/limits/*": "max"})
    assert outcome.value.decode() == TOML.replace("10", "12")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("a = 1\na = 2\n", "a"),
        ("a = \n", "line 1"),
        ("a = nan\n", "nan"),
        ("a = " + "[" * 100_000, "nested"),
        ("\ufeffa = 1\n", "byte order mark"),
    ],
)
def test_toml_that_cannot_be_merged_is_refused(broken: str, why: str) -> None:
    with pytest.raises(MergeConflict) as caught:
        merged("toml", "a = 1\n", broken, "a = 7\n")
    assert why in str(caught.value)
    assert caught.value.agent == "agent0"


def test_toml_has_no_null_to_resolve_to() -> None:
    with pytest.raises(MergeConflict, match="cannot be written as TOML"):
        merged("toml", "a = 1\n", "a = 2\n", "a = 3\n", resolve=lambda conflict: None)


@pytest.mark.parametrize(
    ("strategy", "module", "command"),
    [("yaml", "ruamel.yaml", "pip install 'agentguard[yaml]'"), ("toml", "tomlkit", "pip install tomlkit")],
)
def test_a_missing_library_is_said_at_the_first_use_and_not_before(strategy: str, module: str, command: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from agentguard.merge import ConfigError, check_strategy, merge\n"
        f"check_strategy({strategy!r})\n"
        "assert merge('json', b'1', {'a': b'2', 'b': b'2'}).value == b'2'\n"
        f"try: merge({strategy!r}, b'', {{'a': b'x', 'b': b'y'}})\n"
        "except ConfigError as error: print(error)\n"
    ).replace(
        "import ConfigError, check_strategy, merge",
        "import check_strategy, merge\nfrom agentguard.exceptions import ConfigError",
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert command in done.stdout
