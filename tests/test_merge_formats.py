"""Merging YAML and TOML: by value, with comments, order and layout kept."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from agentguard.codecs import Codec, codec_for
from agentguard.codecs.values import same
from agentguard.exceptions import MergeConflict
from agentguard.merge import Conflict, Merged, Options, merge, merge_values


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
        ("a: 1\na: 2\n", "line 2, column 1: a is given twice"),
        ("a: [1\n", "line 2, column 1"),
        ("a: !!python/object/apply:os.system [ls]\n", "tag"),
        ("a: !mine 1\n", "the tag '!mine'"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("? [1, 2]\n: 3\n", "is no key"),
        ("a: .nan\n", "nan"),
        ("a: &x [*x]\n", "the alias *x stands inside itself"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("- " * 3000 + "a", "nested too deeply"),
        ("\n".join(" " * level + "a:" for level in range(300)), "nested too deeply"),
        ("\ufeffa: 1\n", "byte order mark"),
        (
            "x: &x [" + "1," * 200 + "]\ny: &y [" + "*x," * 200 + "]\nz: [" + "*y," * 200 + "]\n",
            "aliases unfold to",
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


def test_a_missing_library_is_said_at_the_first_use_and_not_before() -> None:
    script = (
        "import sys\n"
        "sys.modules['ruamel.yaml'] = None\n"
        "from agentguard.merge import ConfigError, check_strategy, merge\n"
        "check_strategy('yaml')\n"
        "assert merge('json', b'1', {'a': b'2', 'b': b'2'}).value == b'2'\n"
        "try: merge('yaml', b'', {'a': b'x', 'b': b'y'})\n"
        "except ConfigError as error: print(error)\n"
    ).replace(
        "import ConfigError, check_strategy, merge",
        "import check_strategy, merge\nfrom agentguard.exceptions import ConfigError",
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "pip install 'agentguard[yaml]'" in done.stdout


def test_comments_stay_beside_what_others_changed() -> None:
    # One agent explains what another one changes on the same line, so lines cannot be merged.
    one = YAML.replace("read: 10   # was 20", "read: 10   # was 20, see the log")
    two = YAML.replace("read: 10", "read: 11")
    outcome = merged("yaml", YAML, one, two)
    assert not outcome.conflicts
    assert outcome.value.decode() == YAML.replace("read: 10   # was 20", "read: 11   # was 20, see the log")
    one = TOML.replace("read = 10  # was 20", "# slow\nread = 10  # was 30")
    two = TOML.replace("read = 10", "read = 11")
    outcome = merged("toml", TOML, one, two)
    assert not outcome.conflicts
    assert outcome.value.decode() == TOML.replace("read = 10  # was 20", "# slow\nread = 11  # was 30")


def test_a_new_key_keeps_its_comment() -> None:
    one = YAML.replace("    read: 10", "    write: 3   # new\n    read: 10")
    two = YAML.replace("read: 10", "read: 11")
    outcome = merged("yaml", YAML, one, two)
    assert not outcome.conflicts
    assert "write: 3   # new\n" in outcome.value.decode()
    assert "read: 11   # was 20\n" in outcome.value.decode()


def test_comments_that_cannot_all_be_kept_are_a_conflict() -> None:
    one = YAML.replace("read: 10   # was 20", "read: 11   # for one")
    two = YAML.replace("read: 10   # was 20", "read: 10   # for two")
    outcome = merged("yaml", YAML, one, two)
    assert outcome.conflicts == (
        Conflict(
            "settings",
            "comments",
            "",
            {"agent0": "# for one", "agent1": "# for two"},
            "comments that cannot be kept beside what others changed",
        ),
    )
    assert outcome.value.decode() == YAML.replace("read: 10", "read: 11")


def test_a_text_keeps_its_quotes() -> None:
    one, two = YAML.replace("'demo'", "'new'").replace("read: 10", "read: 1"), YAML.replace("# was 20", "# then")
    assert "name: 'new' " in merged("yaml", YAML, one, two).value.decode()


def edited(rng: random.Random, value: Any, agent: str) -> Any:
    """What an agent made of a value; what it puts in is its own."""
    if isinstance(value, dict):
        out = {key: edited(rng, item, agent) for key, item in value.items() if rng.random() > 0.1}
        if rng.random() < 0.4:
            out[rng.choice(["new", f"new {agent}", "limits"])] = rng.choice(
                [f"{agent} {rng.random()}", {"x": agent}, [agent]]
            )
        return out
    if isinstance(value, list):
        out_list = [edited(rng, item, agent) for item in value if rng.random() > 0.1]
        return [*out_list, agent] if rng.random() < 0.3 else out_list
    return rng.choice([agent, rng.randint(0, 9), True, 1.5]) if rng.random() < 0.15 else value


def commented(rng: random.Random, data: bytes, agent: str) -> bytes:
    lines = data.decode().split("\n")
    for at in sorted(rng.sample(range(len(lines)), k=min(len(lines), rng.randint(0, 2))), reverse=True):
        lines.insert(at, f"# {agent} {at}")
    return "\n".join(lines).encode()


def check_document(strategy: str, codec: Codec, rng: random.Random) -> str:
    base = YAML if strategy == "yaml" else TOML
    old = codec.load(base.encode())
    sides = {}
    for agent in ["ann", "bob", "eve"][: rng.randint(2, 3)]:
        sides[agent] = commented(rng, codec.dump(edited(rng, old, agent), base.encode()), agent)
    values = {agent: codec.load(data) for agent, data in sides.items()}
    expected = merge_values(old, {agent: value for agent, value in values.items() if not same(value, old)})
    try:
        outcome = merge(strategy, base.encode(), sides, Options("settings"))
    except MergeConflict as refused:
        assert "cannot be written" in str(refused), refused
        return "refused"
    assert same(codec.load(outcome.value), expected.value)
    about_values = [conflict for conflict in outcome.conflicts if conflict.path != "comments"]
    assert {c.path for c in about_values} == {c.path for c in expected.conflicts}
    kept = outcome.value.decode() + "".join(
        str(side) for c in outcome.conflicts if c.path == "comments" for side in c.sides.values()
    )
    for agent, data in sides.items():
        for line in data.decode().split("\n"):
            if line.lstrip().startswith(f"# {agent}"):
                assert line.strip() in kept, (line, sides)
    turned = merge(strategy, base.encode(), dict(reversed(sides.items())), Options("settings"))
    assert {c.path for c in turned.conflicts} == {c.path for c in outcome.conflicts}
    return "lost beside" if len(about_values) < len(outcome.conflicts) else "merged"


@pytest.mark.parametrize("strategy", ["yaml", "toml"])
@pytest.mark.parametrize("cases", [60, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_any_change_of_values_and_comments(strategy: str, cases: int) -> None:
    codec = codec_for(f"settings.{strategy}")
    seen = Counter(check_document(strategy, codec, random.Random(seed)) for seed in range(cases))
    print(strategy, seen)
    assert seen["merged"] > cases * 0.9
    assert seen["refused"] <= cases * 0.05
