from __future__ import annotations

import enum
import functools
import pickle
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentguard import ConfigError, Declaration, UndeclaredWrite, declare
from agentguard.declaration import Signature, check_function, declared_on, template


def names(text: str, **arguments: object) -> list[str]:
    return [access.name for access in Declaration.of(writes=text).accesses(arguments, "t")]


class Order(BaseModel):
    id: int
    folder: str = "notes"


def test_templates_fill_from_plain_values() -> None:
    assert names("findings.json") == ["findings.json"]
    assert names("notes/{topic}.md", topic="cells") == ["notes/cells.md"]
    assert names("db:orders/{n}", n=42) == ["db:orders/42"]
    assert names("{path}", path=Path("a/b.md")) == ["a/b.md"]
    assert names("k:{u}", u=uuid.UUID(int=1)) == [f"k:{uuid.UUID(int=1)}"]
    assert names("day-{n:03d}.log", n=7) == ["day-007.log"]
    assert names("a{{b}}", x=1) == ["a{b}"]
    assert names("{a}/{b}", a="x", b="y") == ["x/y"]

    class Color(enum.Enum):
        RED = "red"

    assert names("c/{color}", color=Color.RED) == ["c/red"]


def test_templates_reach_into_models_and_mappings() -> None:
    assert names("db:orders/{order.id}", order=Order(id=42)) == ["db:orders/42"]
    assert names("db:orders/{order.id}", order={"id": 42}) == ["db:orders/42"]
    assert names("{folder}/x", order=Order(id=1)) == ["notes/x"]  # a tool that takes one model


def test_a_list_argument_names_one_resource_each() -> None:
    assert names("{paths}", paths=["a", "b"]) == ["a", "b"]
    assert names("{paths}", paths={"b", "a"}) == ["a", "b"]
    assert names("{paths}", paths=[]) == []


@pytest.mark.parametrize("value", [None, "", "a\0b", [1, ["x"]], {"a": 1}, object(), b"x"])
def test_a_value_that_cannot_be_part_of_a_name_refuses_the_call(value: object) -> None:
    with pytest.raises(UndeclaredWrite, match="Nothing was applied"):
        names("{path}" if not isinstance(value, list) else "n/{path}", path=value)


def test_a_missing_argument_refuses_the_call() -> None:
    with pytest.raises(UndeclaredWrite, match="needs the argument 'path'"):
        names("{path}", other=1)


@pytest.mark.parametrize(
    "text", ["{x", "x}", "{}", "{0}", "{a.__class__}", "{_x}", "{a!r}", "{a:{b}}", "{a[0]}", "", " "]
)
def test_bad_templates_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        Declaration.of(writes=text)


@pytest.mark.parametrize("given_", [3, ["a", 3], {"a"}, object()])
def test_bad_declarations_are_config_errors(given_: object) -> None:
    with pytest.raises(ConfigError, match="must be a resource name"):
        Declaration.of(writes=given_)


def test_declare_checks_the_signature_at_once() -> None:
    with pytest.raises(ConfigError, match=r"did you mean \{topic\}") as caught:

        @declare(writes="notes/{topci}.md")
        def note(topic: str) -> None: ...

    assert caught.value.nearest == "topic"
    assert caught.value.tool == "note"


def test_declare_returns_the_function_itself_and_is_found_through_wrappers() -> None:
    def plain(topic: str) -> str:
        return topic

    marked = declare(reads="notes/{topic}.md")(plain)
    assert marked is plain

    @functools.wraps(plain)
    def outer(*args: object) -> object:
        return plain(*args)  # type: ignore[arg-type]

    assert declared_on(functools.partial(outer)) == Declaration(reads=("notes/{topic}.md",))
    assert declared_on(len) is None


def test_declared_empty_is_not_unknown() -> None:
    @declare()
    def pure() -> None: ...

    found = declared_on(pure)
    assert found is not None and not found


def test_open_keywords_and_models_are_accepted() -> None:
    def open_ended(**kwargs: object) -> None: ...

    def one_model(order: Order) -> None: ...

    check_function(open_ended, Declaration.of(writes="{anything}"), "t")
    check_function(one_model, Declaration.of(writes="db:{id}"), "t")
    with pytest.raises(ConfigError):
        check_function(one_model, Declaration.of(writes="db:{nothing}"), "t")


def test_signature_binds_positional_named_defaults_and_extra_keywords() -> None:
    def tool(a: int, /, b: str = "x", *rest: int, c: int = 3, **more: object) -> tuple[object, ...]:
        return a, b, rest, c, more

    signature = Signature(tool)
    bound = signature.bind((1, "y", 5), {"c": 4, "path": "p"})
    assert signature.arguments(bound) == {"a": 1, "b": "y", "rest": (5,), "c": 4, "path": "p"}
    signature.replace(bound, {"b": "z", "path": "q"})
    assert tool(*bound.args, **bound.kwargs) == (1, "z", (5,), 4, {"path": "q"})
    assert signature.arguments(signature.bind((1,), {}))["b"] == "x"


def test_accesses_say_which_argument_carries_the_path() -> None:
    whole = Declaration.of(writes="{path}").accesses({"path": "a.md"}, "t")[0]
    assert (whole.argument, whole.suffix) == ("path", "")
    joined = Declaration.of(writes="{folder}/{name}").accesses({"folder": "d", "name": "a.md"}, "t")[0]
    assert (joined.argument, joined.suffix) == ("folder", "/a.md")
    assert Declaration.of(writes="{n}").accesses({"n": 5}, "t")[0].argument is None  # a number leads nowhere
    assert Declaration.of(writes="{d}/notes.md").accesses({"d": "x"}, "t")[0].argument is None
    inside = Declaration.of(writes="notes/{topic}.md").accesses({"topic": "x"}, "t")[0]
    assert inside.argument is None


@given(st.text(min_size=1).filter(lambda t: "\0" not in t and t.strip()))
def test_any_text_value_is_data(text: str) -> None:
    assert names("db:x/{v}", v=text) == ["db:x/" + text]


def test_templates_and_declarations_are_values() -> None:
    made = Declaration.of(writes=["a", "{b}"], reads="c")
    assert pickle.loads(pickle.dumps(made)) == made
    assert template("a{b}") is template("a{b}")
    assert made.fields == {"b"}
