"""The configuration: what it means, where it is found, and what is said when it cannot be meant."""

from __future__ import annotations

import copy
import fnmatch
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.config import (
    Config,
    ResourceConfig,
    ToolConfig,
    find_config,
    load_config,
    make_config,
    resolver,
)
from agentguard.config.models import _Index, _pattern
from agentguard.exceptions import AgentGuardError, ConfigError

FULL = """\
root = "workspace"
locks = "file"
timeout = 5
durable = false
require_read = true
unknown_tools = "serialize"
[resources."findings.json"]
mode = "shard"
merge = "json"
paths = { "/total" = "counter", "/tags" = "set", "/items" = "list:id" }
on_conflict = "park"
stale = "merge"
durable = true
timeout = 0
require_read = false
[resources."reports/*.md"]
on_conflict = "team.rules:settle"
[tools.write_file]
writes = ["{file_path}"]
reads = "db:orders/{order.id}"
redirect = "none"
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workspace").mkdir()


def wrong(text: str, file: str = "agentguard.toml") -> ConfigError:
    Path(file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Path(file))
    error = caught.value
    assert isinstance(error, ValueError)
    assert isinstance(error, AgentGuardError)
    assert error.file == str(Path(file).absolute())
    assert error.file in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), repr(again.fields)) == (str(error), repr(error.fields))
    return error


# What a file means


def test_everything_a_file_may_say(tmp_path: Path) -> None:
    Path("agentguard.toml").write_text(FULL)
    config = load_config()
    assert config.root == tmp_path / "workspace"
    assert (config.locks, config.timeout, config.durable, config.require_read) == ("file", 5.0, False, True)
    assert config.unknown_tools == "serialize"
    assert config.resources["findings.json"] == ResourceConfig(
        mode="shard",
        merge="json",
        paths={"/total": "counter", "/tags": "set", "/items": "list:id"},
        on_conflict="park",
        stale="merge",
        durable=True,
        timeout=0.0,
        require_read=False,
    )
    assert config.resources["reports/*.md"].on_conflict == "team.rules:settle"
    assert config.tools == {
        "write_file": ToolConfig(writes=("{file_path}",), reads=("db:orders/{order.id}",), updates=(), redirect="none")
    }


def test_yaml_and_pyproject_say_the_same(tmp_path: Path) -> None:
    import tomlkit
    from ruamel.yaml import YAML

    data = tomlkit.parse(FULL).unwrap()
    Path("agentguard.toml").write_text(FULL)
    with Path("agentguard.yaml").open("w") as file:
        YAML().dump(data, file)
    Path("pyproject.toml").write_text(tomlkit.dumps({"project": {"name": "x"}, "tool": {"agentguard": data}}))
    expected = load_config(Path("agentguard.toml"))
    assert load_config(Path("agentguard.yaml")) == load_config(Path("pyproject.toml")) == expected
    del data["root"]
    assert make_config("workspace", **data) == expected


def test_the_defaults(tmp_path: Path) -> None:
    for config in (load_config(), make_config(), make_config(tmp_path), make_config(str(tmp_path))):
        assert config.root == tmp_path
        assert (config.locks, config.timeout, config.durable, config.require_read) == ("file", 30.0, True, False)
        assert (config.unknown_tools, config.resources, config.tools) == ("allow", {}, {})
    one = make_config().resource("a.json")
    assert (one.mode, one.merge, one.paths, one.on_conflict, one.stale) == ("serialize", None, {}, "fail", "reject")
    Path("agentguard.toml").write_text("")
    assert load_config() == make_config()
    Path("agentguard.yaml").write_text("# nothing yet\n")
    assert load_config(Path("agentguard.yaml")) == make_config()


def test_a_relative_root_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("agentguard.toml").write_text('root = "workspace"')
    (tmp_path / "workspace" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "workspace" / "deep")
    assert load_config().root == tmp_path / "workspace"
    assert make_config("..").root == tmp_path / "workspace"
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("agentguard.toml")).root.is_absolute()


def test_a_configuration_does_not_change() -> None:
    config = make_config(resources={"a": {}})
    with pytest.raises(ValueError, match="frozen"):
        config.timeout = 1.0
    with pytest.raises(ValueError, match="frozen"):
        config.resource("a").mode = "shard"


def test_a_byte_order_mark_is_no_mistake() -> None:
    Path("agentguard.toml").write_bytes(b"\xef\xbb\xbftimeout = 3\n")
    assert load_config().timeout == 3.0


# Finding it


def test_the_nearest_file_wins_in_a_known_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "workspace" / "deep"
    inner.mkdir()
    monkeypatch.chdir(inner)
    (tmp_path / "pyproject.toml").write_text("[tool.agentguard]\ntimeout = 1\n")
    assert find_config() == tmp_path / "pyproject.toml"
    for number, name in enumerate(("agentguard.yml", "agentguard.yaml"), 2):
        (tmp_path / name).write_text(f"timeout: {number}\n")
        assert find_config() == tmp_path / name
    (tmp_path / "agentguard.toml").write_text("timeout = 4\n")
    assert find_config() == find_config(tmp_path) == tmp_path / "agentguard.toml"
    assert load_config().timeout == load_config(tmp_path).timeout == 4.0
    (inner / "agentguard.toml").mkdir()  # a folder of that name is no configuration
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")  # nor is a project without our table
    assert find_config() == tmp_path / "agentguard.toml"
    (inner / "pyproject.toml").write_text("broken = [")
    assert find_config() == tmp_path / "agentguard.toml"
    (inner / "pyproject.toml").write_text("[tool.agentguard]\nbroken = [")
    with pytest.raises(ConfigError, match=r"pyproject\.toml, line 2"):
        find_config()


def test_a_given_file_has_to_be_there(tmp_path: Path) -> None:
    for name, text in [
        ("nope.toml", "does not exist: create it"),
        ("workspace", "no configuration in this folder: create agentguard.toml"),
        ("agentguard.json", "a .toml, .yaml or .yml file"),
    ]:
        with pytest.raises(ConfigError, match=text) as caught:
            load_config(Path(name))
        assert caught.value.file == str(tmp_path / name)
    Path("pyproject.toml").write_text("[project]\n")
    with pytest.raises(ConfigError, match=r"no table \[tool.agentguard\]: add one"):
        load_config(Path("pyproject.toml"))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs permissions")
def test_a_file_that_cannot_be_read() -> None:
    Path("agentguard.toml").touch(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config()


# What is wrong with it: (text, line, key, nearest, part of the message)

WRONG = [
    ("\ntiemout = 3", 2, "tiemout", "timeout", 'unknown key; did you mean "timeout"?'),
    ("[resource.x]", 1, "resource", "resources", "unknown key"),
    ('mode = "shard"', 1, "mode", None, 'it belongs to [resources."<name>"]'),
    ('writes = "x"', 1, "writes", None, 'it belongs to [tools."<name>"]'),
    ("[resources.x]\nunknown_tools = 1", 2, "resources.x.unknown_tools", None, "it belongs to the top level"),
    ("[resources.x]\nmoed = 1", 2, "resources.x.moed", "mode", "unknown key"),
    ("[tools.x]\nwrite = 'a'", 2, "tools.x.write", "writes", "unknown key"),
    ('timeout = "3"', 1, "timeout", None, "expected a number of seconds, finite and not below 0, not '3' (a text)"),
    ("timeout = -1", 1, "timeout", None, "not -1 (a number)"),
    ("timeout = nan", 1, "timeout", None, "not nan"),
    ("timeout = inf", 1, "timeout", None, "not inf"),
    ("timeout = true", 1, "timeout", None, "not True (true/false)"),
    ("timeout = 1" + "0" * 400, 1, "timeout", None, "a number of seconds"),
    ("[resources.x]\n\ntimeout = -1", 3, "resources.x.timeout", None, "a number of seconds"),
    ('durable = "yes"', 1, "durable", "true", "true or false, not 'yes' (a text); did you mean \"true\"?"),
    ("require_read = 1", 1, "require_read", None, "true or false, not 1 (a number)"),
    ('unknown_tools = "alow"', 1, "unknown_tools", "allow", '"allow", "serialize" or "deny"'),
    ('locks = "flie"', 1, "locks", "file", 'expected "file"'),
    ('locks = "postgresql://h/db"', 1, "locks", "file", "by postgresql are not in this version"),
    ('locks = "redis://h"', 1, "locks", "file", "by redis are not in this version"),
    ("root = 5", 1, "root", None, "expected the path of a directory, not 5 (a number)"),
    ('root = "nope"', 1, "root", None, "nope does not exist: create it"),
    ('root = "agentguard.toml"', 1, "root", None, "is not a directory"),
    ('root = "~/x"', 1, "root", None, "~ is not expanded"),
    ("resources = 5", 1, "resources", None, "expected a table for each resource, not 5"),
    ("[resources]\n'x.md' = 5", 2, 'resources."x.md"', None, "expected a table of settings, not 5"),
    ("[[tools]]\nx = 1", 1, "tools", None, "expected a table for each tool, not [{'x': 1}] (a list)"),
    ('[resources.""]', 1, 'resources.""', None, "a resource needs a name"),
    ('[resources."  "]', 1, 'resources."  "', None, "a resource needs a name"),
    ('[tools.""]', 1, 'tools.""', None, "a tool needs a name"),
    ('[resources.x]\nmode = "shrad"', 2, "resources.x.mode", "shard", '"serialize" or "shard", not \'shrad\''),
    ('[resources.x]\nstale = "mergee"', 2, "resources.x.stale", "merge", '"reject", "merge" or "ignore"'),
    ('[resources.x]\nmerge = "jsn"', 2, "resources.x.merge", "json", "jsn"),
    ("[resources.x]\nmerge = 5", 2, "resources.x.merge", None, "the name of a merge strategy, not 5"),
    ('[resources.x]\npaths = { "/a" = "cuonter" }', 2, 'resources.x.paths."/a"', "counter", "cuonter"),
    ('[resources.x.paths]\n"/a" = "set"\n"/b" = "list:"', 3, 'resources.x.paths."/b"', "list:id", "list:"),
    ('[resources.x]\npaths = { "a" = "set" }', 2, "resources.x.paths.a", "/a", "'/a'"),
    ('[resources.x]\npaths = { "/a" = 5 }', 2, 'resources.x.paths."/a"', None, "a table of JSON pointers"),
    ('[resources.x]\non_conflict = "prak"', 2, "resources.x.on_conflict", "park", '"package.module:function"'),
    ('[resources.x]\non_conflict = "a b:c"', 2, "resources.x.on_conflict", None, '"package.module:function"'),
    ('[resources.x]\non_conflict = ".a:c"', 2, "resources.x.on_conflict", None, '"package.module:function"'),
    ('[resources."../x"]', 1, 'resources."../x"', None, "must name something below the root"),
    ('[resources."../*.md"]', 1, 'resources."../*.md"', None, "must name something below the root"),
    ('[resources."a/../../x/**"]', 1, 'resources."a/../../x/**"', None, "must name something below the root"),
    ('[resources."/etc/passwd"]', 1, 'resources."/etc/passwd"', None, "must name something below the root"),
    ('[resources."/etc/*"]', 1, 'resources."/etc/*"', None, "must name something below the root"),
    ('[resources.".agentguard/x"]', 1, 'resources.".agentguard/x"', None, "outside .agentguard/"),
    ('[resources."n/{topic}.md"]', 1, 'resources."n/{topic}.md"', "n/*.md", 'write "n/*.md"'),
    ('[resources."a.json"]\n[resources."./a.json"]', 2, 'resources."./a.json"', "a.json", "keep one of the two"),
    ('[resources."d"]\n[resources."d/"]', 2, 'resources."d/"', "d", "keep one of the two"),
    ('[resources."x/*.md"]\n[resources."x//*.md"]', 2, 'resources."x//*.md"', "x/*.md", "keep one of the two"),
    ("[tools.w]\nwrites = '{x'", 2, "tools.w.writes", None, "expected '}'"),
    ("[tools.w]\nwrites = 'x}'", 2, "tools.w.writes", None, "'}'"),
    ("[tools.w]\nreads = ['a', '{x.__class__}']", 2, "tools.w.reads", None, "{x.__class__}"),
    ("[tools.w]\nupdates = '{x!r}'", 2, "tools.w.updates", None, "{x}"),
    ("[tools.w]\nupdates = '{}'", 2, "tools.w.updates", None, "must name an argument"),
    ("[tools.w]\nwrites = ''", 2, "tools.w.writes", None, "non-empty"),
    ("[tools.w]\nwrites = 5", 2, "tools.w.writes", None, "a resource name or a list of names, not 5"),
    ("[tools.w]\nwrites = ['a', 5]", 2, "tools.w.writes.1", None, "a resource name or a list of names, not 5"),
    ("[tools.w]\nwrites = '../{x}'", 2, "tools.w.writes", None, "must name something below the root"),
    ("[tools.w]\nwrites = '{x}/../../y'", 2, "tools.w.writes", None, "must name something below the root"),
    ("[tools.w]\nwrites = '/etc/{x}'", 2, "tools.w.writes", None, "must name something below the root"),
    ("[tools.w]\nredirect = 'nonee'", 2, "tools.w.redirect", "none", '"argument" or "none"'),
    ("timeout = 1\ntimeout = 2", 2, None, None, "timeout is given twice"),
    ("timeout = ?", 1, None, None, "line 1, column 11: the file cannot be read"),
    ("[tools.w]\nwrites = [", 2, None, None, "the file cannot be read"),
]


@pytest.mark.parametrize(("text", "line", "key", "nearest", "part"), WRONG, ids=[text[:40] for text, *_ in WRONG])
def test_a_mistake_is_named(text: str, line: int, key: str | None, nearest: str | None, part: str) -> None:
    error = wrong(text + "\n")
    assert part in str(error)
    assert f", line {line}" in str(error)
    assert (error.line, error.fields.get("key"), error.fields.get("nearest")) == (line, key, nearest)
    if key is not None:
        assert f": {key}: " in str(error)


WRONG_YAML = [
    ("- timeout: 3\n", 1, None, "must be a table of keys and values"),
    ("just words\n", 1, None, "must be a table of keys and values"),
    ("timeout: 1\ntimeout: 2\n", 2, None, "timeout is given twice"),
    ("timeout: 1\nroot: [\n", 3, None, "line 3, column 1: the file cannot be read"),
    ("root: !!python/name:os.system x\n", 1, None, "tag"),
    ("timeout: 1\ndurable: yes\n", 2, "durable", 'did you mean "true"?'),
    ("resources:\n  a.json:\n    # how\n    mode: shrad\n", 4, 'resources."a.json".mode', 'did you mean "shard"?'),
    ("resources:\n  42: {}\n", 2, "resources.42", "write it in quotes"),
    ("42: {}\n", 1, "42", "write it in quotes"),
    ("resources:\n", 1, "resources", "not None (nothing)"),
    ("tools:\n  w:\n    writes:\n    - a\n    - 5\n", 5, "tools.w.writes.1", "not 5 (a number)"),
    ("tools:\n  w:\n    writes: ../x\n", 3, "tools.w.writes", "below the root"),
]


@pytest.mark.parametrize(("text", "line", "key", "part"), WRONG_YAML, ids=[text[:30] for text, *_ in WRONG_YAML])
def test_a_mistake_in_yaml_is_named(text: str, line: int, key: str | None, part: str) -> None:
    error = wrong(text, "agentguard.yaml")
    assert part in str(error)
    assert (error.line, error.fields.get("key")) == (line, key)


def test_a_mistake_in_a_pyproject_is_named_as_it_stands_there() -> None:
    error = wrong('[project]\nname = "x"\n[tool.agentguard]\ntiemout = 3\n', "pyproject.toml")
    assert "pyproject.toml, line 4: tool.agentguard.tiemout: unknown key" in str(error)
    assert error.key == "tiemout"
    error = wrong('[tool.agentguard]\n[tool.agentguard.resources."a.md"]\nmode = "x"\n', "pyproject.toml")
    assert error.line == 3


def test_a_mistake_in_arguments_is_named() -> None:
    with pytest.raises(ConfigError, match=r'Guard\(...\): tiemout: unknown key; did you mean "timeout"') as caught:
        make_config(tiemout=3)
    assert (caught.value.file, caught.value.line, caught.value.value) == (None, None, 3)
    with pytest.raises(ConfigError, match="does not exist: create it"):
        make_config("nope")
    with pytest.raises(ConfigError, match="expected the path of a directory"):
        make_config(None)  # type: ignore[arg-type]


def test_several_mistakes_are_told_together() -> None:
    error = wrong('tiemout = 3\n[resources.x]\nmode = "shrad"\n')
    assert len(str(error).splitlines()) == 2
    assert {"line 1", "line 3"} <= set(str(error).replace(":", ",").replace("\n", ", ").split(", "))
    error = wrong('locks = "flie"\n[resources.x]\nmerge = "jsn"\n[tools.w]\nwrites = "{"\n')
    assert [part in str(error) for part in ("locks", "jsn", "tools.w.writes")] == [True] * 3


@pytest.mark.parametrize(
    "text",
    [
        'locks = "redis://user:secret@host"',
        'locks = "mysql://user:secret@host"',
        'locks = ["redis://user:secret@host"]',
        'mode = "redis://user:secret@host"',
        'locks = "redis://user:secret@host"\nlocks = 1',
        'locks = "redis://user:secret@host" x',
    ],
)
def test_a_password_is_not_told(text: str) -> None:
    error = wrong(text)
    assert "secret" not in str(error)
    assert "secret" not in repr(error.fields)
    assert error.__cause__ is None or "secret" not in str(error.__cause__)
    error = wrong(text.replace(" = ", ": "), "agentguard.yaml")
    assert "secret" not in str(error) + repr(error.fields)


def test_bytes_that_are_no_text() -> None:
    Path("agentguard.toml").write_bytes(b"timeout = 1\nroot = '\xff'\n")
    with pytest.raises(ConfigError, match=r"line 2, column 9: .*0xff"):
        load_config()


def test_yaml_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("agentguard.yaml").write_text("timeout: 3\n")
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(ConfigError, match=r"pip install 'agentguard\[yaml\]'"):
        load_config()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_a_configuration_or_an_error_with_its_file(text: str) -> None:
    for name in ("any.toml", "any.yaml"):
        Path(name).write_text(text, newline="")
        try:
            config = load_config(Path(name))
        except ConfigError as error:
            assert name in str(error)
        else:
            assert isinstance(config, Config)


# Symbolic links


def test_a_resource_has_the_name_that_calls_have(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    Path("alias").symlink_to("real")
    Path("out").symlink_to("..")
    config = make_config(resources={"./alias//a.json": {"mode": "shard"}, str(tmp_path / "b.json"): {"mode": "shard"}})
    assert sorted(config.resources) == ["b.json", "real/a.json"]
    assert config.resource("real/a.json").mode == config.resource("b.json").mode == "shard"
    with pytest.raises(ConfigError, match="below the root"):
        make_config(resources={"out/a.json": {}})
    with pytest.raises(ConfigError, match="keep one of the two"):
        make_config(resources={"alias/a.json": {}, "real/a.json": {}})


def test_a_root_behind_a_link_is_the_real_one(tmp_path: Path) -> None:
    Path("link").symlink_to("workspace")
    assert make_config("link").root == tmp_path / "workspace"


# Which entry applies

LAYERS: dict[str, Any] = {
    "**": 1.0,
    "**/*.md": 2.0,
    "reports/**": 3.0,
    "reports/*.md": 4.0,
    "reports/final.md": 5.0,
    "db:orders/*": 6.0,
    "a[12].txt": 7.0,
    "a[!12].txt": 8.0,
    "?.bin": 9.0,
    "drafts/": 10.0,
}


@pytest.mark.parametrize(
    ("name", "timeout"),
    [
        ("x", 1.0),
        ("x/y", 1.0),
        ("x.md", 2.0),
        ("x/y/z.md", 2.0),
        ("reports/x", 3.0),
        ("reports/x/y.md", 3.0),
        ("reports/x.md", 4.0),
        ("reports/final.md", 5.0),
        ("db:orders/42", 6.0),
        ("db:orders/42/items", 1.0),
        ("a1.txt", 7.0),
        ("a3.txt", 8.0),
        ("a[12].txt", 7.0),  # the exact spelling of a glob is a name too
        ("a/.txt", 1.0),
        ("x.bin", 9.0),
        ("/.bin", 1.0),
        ("drafts", 10.0),
        ("drafts/", 10.0),
        ("drafts/x", 1.0),
        ("line\nbreak.md", 2.0),
    ],
)
def test_the_exact_name_wins_then_the_most_specific_glob(name: str, timeout: float) -> None:
    for layers in (LAYERS, dict(reversed(LAYERS.items()))):
        config = make_config(resources={key: {"timeout": value} for key, value in layers.items()})
        assert config.resource(name).timeout == timeout


def test_a_glob_stands_for_whole_steps() -> None:
    config = make_config(resources={"reports/*.md": {"mode": "shard"}})
    for name in ("reports/x/y.md", "my/reports/x.md", "reports/x.mdx", "reports"):
        assert config.resource(name).mode == "serialize"


def test_the_top_level_fills_what_an_entry_leaves_open() -> None:
    config = make_config(timeout=7, durable=False, require_read=True, resources={"a": {"durable": True, "timeout": 0}})
    one, other = config.resource("a"), config.resource("b")
    assert (one.timeout, one.durable, one.require_read) == (0.0, True, True)
    assert (other.timeout, other.durable, other.require_read) == (7.0, False, True)
    assert config.resources["a"].require_read is None


def test_looking_up_is_cached_but_bounded_and_leaves_no_trace() -> None:
    config = make_config(resources={"*": {"mode": "shard"}})
    assert config.resource("a") is config.resource("a")
    for number in range(10_000):
        config.resource(f"name{number}")
    assert len(config._index.known) <= 4096
    assert config == make_config(resources={"*": {"mode": "shard"}})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.resource("a").timeout == 30.0
    for changed in (config.model_copy(update={"timeout": 1.0}), copy.copy(config).model_copy(update={"timeout": 1.0})):
        assert changed.resource("a").timeout == 1.0


@settings(deadline=None)
@given(st.text("ab*?[]!^\\.", max_size=8), st.text("ab*?[]!^\\.", max_size=6))
def test_within_one_step_globs_are_those_of_fnmatch(glob: str, name: str) -> None:
    if "**" not in glob:
        assert bool(_pattern(glob).fullmatch(name)) == fnmatch.fnmatchcase(name, glob)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "*", "**", "?", "a*"]), min_size=1, max_size=4), st.data())
def test_across_steps_globs_are_as_defined(steps: list[str], data: st.DataObject) -> None:
    name = data.draw(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4))
    assert bool(_pattern("/".join(steps)).fullmatch("/".join(name))) == _matches(steps, name)


def _matches(steps: list[str], name: list[str]) -> bool:
    if not steps:
        return not name
    if steps == ["**"]:
        return bool(name)
    if steps[0] == "**":
        return _matches(steps[1:], name) or (bool(name) and _matches(steps, name[1:]))
    return bool(name) and fnmatch.fnmatchcase(name[0], steps[0]) and _matches(steps[1:], name[1:])


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [("[a-c]", "abc", "d-"), ("[!a-c]", "d-", "abc/"), ("[c-a]", "", "abc-"), ("[a-]", "a-", "b"), ("[]a]", "]a", "b")],
)
def test_a_range_of_characters(glob: str, matching: str, other: str) -> None:
    assert all(_pattern(glob).fullmatch(one) for one in matching)
    assert not any(_pattern(glob).fullmatch(one) for one in other)


PLAIN = {"a/b*": 3, "ab*": 2, "a*": 1, "a?": 1, "**/a": 1, "a**": 1, "[ab]": 0, "*": 0, "?": 0, "**": 0}


@settings(deadline=None)
@given(st.permutations(list(PLAIN)))
def test_plainer_globs_come_first_and_those_across_steps_last(order: list[str]) -> None:
    found = list(_Index({glob: ResourceConfig.model_validate({}) for glob in order}).order)
    ranks = [(-PLAIN[glob], "**" in glob) for glob in found]
    assert ranks == sorted(ranks)


# Resolvers


def test_a_resolver_is_imported_when_it_is_asked_for() -> None:
    assert resolver("os.path:join") is os.path.join
    assert resolver("pathlib:Path.cwd")() == Path.cwd()


@pytest.mark.parametrize(
    ("spec", "text", "nearest"),
    [
        ("os.path", 'expected "package.module:function"', None),
        ("os:", 'expected "package.module:function"', None),
        (".os:x", 'expected "package.module:function"', None),
        ("os path:x", 'expected "package.module:function"', None),
        ("no_such_module_here:f", "cannot be imported: No module named 'no_such_module_here'", None),
        ("os.path:jion", "os.path has no 'jion'; did you mean \"join\"?", "join"),
        ("os:sep", "is a str, which cannot be called", None),
    ],
)
def test_a_resolver_that_cannot_be_used(spec: str, text: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        resolver(spec)
    assert text in str(caught.value)
    assert (caught.value.value, caught.value.fields.get("nearest")) == (spec, nearest)


def test_a_resolver_whose_module_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_rules.py").write_text("def f(:\n")
    (tmp_path / "failing_rules.py").write_text("raise KeyError('mine')\n")
    with pytest.raises(ConfigError, match="broken_rules cannot be imported"):
        resolver("broken_rules:f")
    with pytest.raises(KeyError, match="mine"):
        resolver("failing_rules:f")


def test_loading_does_not_import_a_resolver() -> None:
    config = make_config(resources={"a": {"on_conflict": "no_such_module_here:f"}})
    assert config.resource("a").on_conflict == "no_such_module_here:f"


def test_the_package_does_not_import_pydantic() -> None:
    code = "import sys, agentguard; print([m for m in ('pydantic', 'tomlkit', 'ruamel.yaml') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
