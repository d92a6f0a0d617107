from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import ConfigError, UndeclaredWrite
from agentguard.locks import Mode, directories_above
from agentguard.resources import Resource, Resources, home_of, plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "ws"
    (made / "a").mkdir(parents=True)
    (made / ".agentguard").mkdir()
    (made / "report.json").write_text("{}")
    (made / "link.json").symlink_to("report.json")
    (made / "folder").symlink_to("a", target_is_directory=True)
    (made / "out").symlink_to(tmp_path, target_is_directory=True)
    return made


def test_one_file_is_one_resource_whatever_the_spelling(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    resources = Resources(root)
    spellings = [
        "report.json",
        "./report.json",
        "a/../report.json",
        "missing/../report.json",
        "link.json",
        "folder/../report.json",
        str(root / "report.json"),
        str(root / "a" / ".." / "link.json"),
        str(root) + "//report.json",
        "a//../report.json",
    ]
    assert {resources.resolve(one).key for one in spellings} == {"file:report.json"}
    assert {resources.resolve(one).name for one in spellings} == {"report.json"}
    assert resources.resolve("folder/x.md").key == "file:a/x.md"
    assert resources.resolve("new/deep/x.md").key == "file:new/deep/x.md"


def test_a_symbolic_root_is_the_real_one(root: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(root, target_is_directory=True)
    assert Resources(alias).resolve(str(alias / "report.json")) == Resources(root).resolve("report.json")


def test_opaque_keys_are_opaque(root: Path) -> None:
    found = Resources(root).resolve("db:orders/../42")
    assert (found.key, found.path) == ("db:orders/../42", None)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "out/x", "out", "..", ".agentguard/locks/x", "a\0b", ""]
)
def test_a_path_cannot_leave_the_root(root: Path, name: str) -> None:
    with pytest.raises(UndeclaredWrite, match="Nothing was applied"):
        Resources(root).resolve(name)


def test_a_name_that_no_file_can_have_is_refused(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(UndeclaredWrite, match="too long"):
        Resources(root).resolve("x" * 5000)
    with pytest.raises(UndeclaredWrite):
        Resources(root).resolve("one/x")


def test_directories(root: Path) -> None:
    resources = Resources(root)
    assert resources.resolve("a").key == resources.resolve("a/").key == "file:a/"
    assert resources.resolve(".").key == "file:"
    assert resources.resolve("new/").directory
    with pytest.raises(ConfigError, match="is a file"):
        resources.resolve("report.json/")


def test_two_roots_agree_on_one_file(root: Path) -> None:
    inner = Resources(root / "a")
    assert inner.home == root
    assert inner.resolve("x.md").key == Resources(root).resolve("a/x.md").key == "file:a/x.md"
    with pytest.raises(UndeclaredWrite):
        inner.resolve("../report.json")


def test_a_nested_home_that_exists_already_is_respected(root: Path) -> None:
    (root / "a" / ".agentguard").mkdir()
    one, two = Resources(root).resolve("a/x.md"), Resources(root / "a").resolve("x.md")
    assert (one.home, one.key) == (two.home, two.key) == (root / "a", "file:x.md")


def test_a_planted_link_is_no_home(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "a" / ".agentguard").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert home_of(root / "a") == root


def test_directories_above() -> None:
    assert directories_above("file:") == []
    assert directories_above("file:x") == ["file:"]
    assert directories_above("file:a/b/") == ["file:", "file:a/"]
    assert directories_above("file:a/b/c") == ["file:", "file:a/", "file:a/b/"]


def test_plan_orders_merges_and_adds_intentions(tmp_path: Path) -> None:
    def of(key: str) -> Resource:
        return Resource(key, key, tmp_path, tmp_path / key)

    ((home, made),) = plan(((of("file:b/x"), True), (of("file:a"), False), (of("file:b/"), False)))
    assert home == tmp_path
    assert made == (
        ("file:", Mode.INTENT_EXCLUSIVE),
        ("file:a", Mode.SHARED),
        ("file:b/", Mode.EXCLUSIVE),  # shared, with an intention to write beneath it
        ("file:b/x", Mode.EXCLUSIVE),
    )
    assert plan(((Resource("k:1", "k:1", tmp_path), True),)) == ((tmp_path, (("k:1", Mode.EXCLUSIVE),)),)


def test_a_plan_takes_one_home_after_the_other(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    file = Resource("x", "file:x", tmp_path, tmp_path / "x")
    other = Resource("inner/x", "file:x", inner, inner / "x")
    assert [(home, len(made)) for home, made in plan(((other, True), (file, True)))] == [(tmp_path, 2), (inner, 2)]


def test_two_files_of_a_guard_that_have_one_key_in_two_homes_are_two(root: Path) -> None:
    (root / "sub" / ".agentguard").mkdir(parents=True)
    resources = Resources(root)
    one, two = resources.resolve("x"), resources.resolve("sub/x")
    assert one.key == two.key
    assert one.home != two.home
    assert (one.id, two.id) == ("file:x", "file:sub/x")


_step = st.sampled_from(["a", "b", "..", ".", "folder", "deep"])


@settings(max_examples=200)
@given(st.lists(_step, min_size=1, max_size=6))
def test_every_spelling_agrees_with_realpath(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "spell"
    if not root.exists():
        (root / "a" / "b").mkdir(parents=True)
        (root / "folder").symlink_to("a/b", target_is_directory=True)
    name = "/".join([*steps, "leaf.txt"])
    real = os.path.realpath(root / name)
    inside = real.startswith(os.path.realpath(root) + os.sep)
    if not inside:
        with pytest.raises(UndeclaredWrite):
            Resources(root).resolve(name)
    else:
        assert str(Resources(root).resolve(name).path) == real


def test_the_core_imports_no_framework() -> None:
    names = ("langgraph", "langchain", "langchain_core", "crewai", "pydantic", "rich", "typer", "filelock", "asyncio")
    code = f"import sys, agentguard; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
