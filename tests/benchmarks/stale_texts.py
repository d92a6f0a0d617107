"""A hundred conflicts, as different as can be, and how long the texts are that tell models of them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentguard import Declaration, Guard, StaleWrite, path
from agentguard.knowledge import TurnMemory
from agentguard.shards import Identity
from agentguard.turns import Turn

__all__ = ["Conflict", "conflicts", "counters"]

Change = Callable[[str], str]
_random = random.Random(4)


@dataclass(frozen=True)
class Conflict:
    """`what`: how it came to it, and what the file holds."""

    what: str
    text: str


# -- what files are called, and what they hold -----------------------------------------------------------------------

NAMES = {
    "short": "a.txt",
    "deep": "/".join(["quarterly-reports", "2026", "north-america", "regional-summaries", "drafts"] * 3) + "/final.md",
    "Chinese": "报告/第三季度市场分析与竞争对手调查结果汇总.md",
    "emoji": "🎉🔥🚀🧪📦" * 8 + ".txt",
    "Cyrillic": "отчёты/заключение по результатам исследования.md",
    "hash": "objects/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08.json",
    "constants": "SRC/MAX_RETRY_COUNT_EXCEEDED_HANDLER_FACTORY_BEAN_PROXY.JAVA",
    "spaces": "notes/what 'they' said, (and \"why\") - v2 [final].txt",
    "Tibetan": "དཔེ་ཆ་དང་ཡིག་ཆ་ཁག.txt",
    "braces": "out/{{template}}/part-{{0001}}.csv",
}

AGENTS = {
    "short": "ann",
    "path": "supervisor:1f0c7d2e9ab4/researcher:77aa01b2c3d4/market-analyst-with-a-rather-long-name",
    "Japanese": "市場調査エージェント第二号",
    "id": "asst_8fK2LmQ9zXv7TbN4RcW1YpHs-b6d1c0de-4f7a-4d1e-9c55-0a1b2c3d4e5f",
}


def _lines(make: Callable[[int], str], count: int, every: int) -> tuple[str, str]:
    """`count` lines, of which one in `every` changes."""
    old = [make(number) for number in range(count)]
    new = [make(number + count) if number % every == 0 else line for number, line in enumerate(old)]
    return "\n".join(old) + "\n", "\n".join(new) + "\n"


def _some(alphabet: str, length: int) -> str:
    return "".join(_random.choices(alphabet, k=length))


def _span(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last)))


def _prose(words: str) -> Callable[[int], str]:
    chosen = words.split()
    return lambda number: " ".join(_random.choices(chosen, k=14))


def _letters(alphabet: str, length: int = 60) -> tuple[str, str]:
    return _lines(lambda number: _some(alphabet, length), 30, 2)


ENGLISH = "the quarterly revenue of our competitors in regional markets has risen although"
RUSSIAN = "выручка конкурентов на региональных рынках выросла хотя количество сотрудников уменьшилось"
ARABIC = "ارتفعت إيرادات المنافسين في الأسواق الإقليمية على الرغم من انخفاض عدد الموظفين"
HINDI = "क्षेत्रीय बाज़ारों में प्रतिस्पर्धियों का राजस्व बढ़ा यद्यपि कर्मचारियों की संख्या घटी"
THAI = "รายได้ของ คู่แข่งใน ตลาด ภูมิภาค เพิ่มขึ้น แม้ว่า จำนวน พนักงาน จะลดลง"
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"
KANA = _span(0x3042, 0x3093) + _span(0x30A2, 0x30F3) + "東京大阪本日語会社"
LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def _source(number: int) -> str:
    name = _random.choice(["order", "invoice", "customer_id", "getHTTPResponse", "__all__", "XMLParser"])
    return (
        f"        self.{name}_{number} = await {name}(items[{number}], key=lambda x: x['{name}'], default=None)  # noqa"
    )


def _json_line(number: int) -> str:
    return json.dumps(
        [{"id": n, "name": f"item {n}", "price": n * 1.25 + number, "tags": ["a", "b"]} for n in range(450)]
    )


def _minified(number: int) -> str:
    return f"function {_some('abcdef', 2)}({_some('xyz', 1)}){{return {number}}}"


def _logged(n: int) -> str:
    return f"2026-11-25T20:{n % 60:02}:07.{n:06}Z 10.0.{n % 256}.7 GET /api/v{n}/x 200 {n * 977}"


def _boxes(n: int) -> str:
    return f"│ {'─' * (n % 40)} │ {'=' * 30} {'*' * 9} ├{'┼' * 9}┤"


def _accents(n: int) -> str:
    return "".join(letter + _some(_span(0x300, 0x340), 3) for letter in "agentguard")


def _indented(number: int) -> str:
    return json.dumps(json.loads(_json_line(number))[:90], indent=2)


CONTENTS: dict[str, tuple[str, str]] = {
    "a sentence": ("The total is 41.\n", "The total is 42.\n"),
    "prose": _lines(_prose(ENGLISH), 60, 3),
    "JSON, 30 kB in a line, one place": (_json_line(0), _json_line(0).replace('"item 250"', '"the item in question"')),
    "JSON, 30 kB in a line, everywhere": (_json_line(0), _json_line(3)),
    "JSON, indented": (_indented(0), _indented(9)),
    "list of 800 names": _lines(lambda n: f"- {_some(LATIN[26:], 9)} ({n})", 800, 2),
    "source code": _lines(_source, 80, 4),
    "source code, minified": ("", ";".join(map(_minified, range(400)))),
    "log with time stamps": _lines(_logged, 200, 5),
    "hex digests": _letters("0123456789abcdef", 64),
    "base64": _lines(lambda n: base64.b64encode(_random.randbytes(57)).decode(), 60, 2),
    "gibberish words": _letters("bcdfghjklmnpqrstvwxz", 120),
    "random capitals": _letters(LATIN, 120),
    "Chinese prose": _letters(CHINESE),
    "Japanese prose": _letters(KANA),
    "Russian prose": _lines(_prose(RUSSIAN), 30, 2),
    "Arabic prose": _lines(_prose(ARABIC), 30, 2),
    "Hindi prose": _lines(_prose(HINDI), 30, 2),
    "Thai prose": _lines(_prose(THAI), 30, 2),
    "Amharic letters": _letters(_span(0x1200, 0x1248)),
    "Tibetan letters": _letters(_span(0x0F40, 0x0F6C)),
    "rare Chinese characters": _letters(_span(0x3400, 0x4DB0)),
    "emoji": _letters(_span(0x1F300, 0x1F5FF), 40),
    "hieroglyphs": _letters(_span(0x13000, 0x1342E), 40),
    "accents on accents": _lines(_accents, 30, 2),
    "boxes and dashes": _lines(_boxes, 60, 2),
    "punctuation": _letters(MARKS, 120),
    "tabs and spaces": _lines(lambda n: _some(" \t", 100) + str(n), 30, 2),
    "escaped text": _lines(lambda n: json.dumps(_some(_span(0x400, 0x450), 25)), 30, 2),
    "a table of numbers": _lines(lambda n: ",".join(f"{_random.random():.12f}" for _ in range(9)), 60, 2),
    "numbers of one digit": _lines(lambda n: " ".join(_some("0123456789", 60)), 30, 2),
    "bytes that are no text": ("\udcff\udcfe" * 50, "\udcff\udcfd" * 50),
    "ends of lines": ("one\ntwo\nthree\n", "one\r\ntwo\r\nthree\r\n"),
    "controls": _lines(lambda n: _some("\x00\x01\x02\x1b\x7f\x85\u2028\u200b\ufeff", 80) + str(n), 20, 2),
}


# -- how it comes to a conflict --------------------------------------------------------------------------------------


class Scene:
    """One file, an agent that has read it, and what happens to it then."""

    def __init__(self, guard: Guard, name: str, agent: str, contents: tuple[str, str]) -> None:
        self.guard, self.name, self.agent = guard, name, agent
        self.declared = name.replace("{{", "{").replace("}}", "}")
        self.file = guard.root / self.declared
        self.old, self.new = (one.encode("utf-8", "surrogateescape") for one in contents)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.identity = Identity(agent, "run")

    def put(self, data: bytes) -> None:
        self.file.write_bytes(data)

    def read(self) -> None:
        with self.guard.identified(self.identity), self.guard.hold(reads=self.name):
            pass

    def by(self, other: str, tool: str) -> None:
        """Another agent writes it."""
        with self.guard.identified(Identity(other, "run")), self.guard.hold(updates=self.name, name=tool) as hold:
            hold.path(self.declared).write_bytes(self.new)

    def refusal(self, tool: str, **declared: Any) -> str:
        """What the agent is told when it writes."""
        with self.guard.identified(self.identity):
            return _refused(self, self.guard.wrap(lambda: None, name=tool, **(declared or {"writes": self.name})))


def _refused(scene: Scene, write: Callable[[], object]) -> str:
    try:
        write()
    except StaleWrite as error:
        return error.for_model()
    raise AssertionError(f"{scene.declared} was not refused")


def changed_by_agent(scene: Scene) -> str:
    scene.put(scene.old)
    scene.read()
    scene.by("bob", "write_file")
    return scene.refusal("write_file")


def changed_by_a_long_name(scene: Scene) -> str:
    scene.put(scene.old)
    scene.read()
    scene.by(
        AGENTS["path"].replace("researcher", "reviewer"),
        "mcp_server_filesystem__write_file_with_backup_and_verification_v2",
    )
    return scene.refusal("mcp_server_filesystem__write_file_with_backup_and_verification_v2")


def changed_outside(scene: Scene) -> str:
    scene.put(scene.old)
    scene.read()
    scene.put(scene.new)
    return scene.refusal("write_file")


def deleted(scene: Scene) -> str:
    scene.put(scene.old)
    scene.read()
    scene.file.unlink()
    return scene.refusal("write_file")


def created(scene: Scene) -> str:
    scene.file.unlink(missing_ok=True)
    scene.read()
    scene.by("bob", "write_file")
    return scene.refusal("write_file")


def made_a_directory(scene: Scene) -> str:
    scene.put(scene.old)
    scene.read()
    scene.file.unlink()
    scene.file.mkdir()
    return scene.refusal("write_file", writes=f"{scene.name}/")


def not_merged(scene: Scene) -> str:
    """A true conflict of a resource that is merged: two agents have replaced the same lines."""
    merge = {"stale": "merge", "merge": "text"}
    guard = Guard(root=scene.guard.root, durable=False, resources={f"{scene.declared.partition('/')[0]}/**": merge})
    merging = Scene(guard, scene.name, scene.agent, ("", ""))
    merging.old, merging.new = scene.old, scene.new
    merging.put(scene.old)
    merging.read()
    merging.by("bob", "write_file")
    with guard.identified(merging.identity):
        mine = b"mine: " + scene.new[::2].replace(b"\n", b" ")
        tool = guard.wrap(lambda: path(merging.declared).write_bytes(mine), writes=scene.name, name="write_file")
        return _refused(scene, tool)


def twice_in_a_turn(scene: Scene) -> str:
    """Both calls of one turn were made without sight of what the other one writes."""
    scene.put(scene.old)
    scene.read()
    guard, writes = scene.guard, Declaration.of(scene.name, None, None)
    resource = guard.resources.resolve(scene.declared).id
    turn = Turn([{resource: True}] * 2, exact=True)
    memory = TurnMemory(guard.knowledge.of("run", scene.agent))

    def write(place: int) -> None:
        with guard.identified(Identity(scene.agent, "run", memory=memory.at(place))):
            guard.call(writes, "write_file", {}, lambda _: scene.put(scene.new), seat=turn.seat(place))
        turn.end(place)

    write(0)
    return _refused(scene, lambda: write(1))


def cannot_be_compared(scene: Scene) -> str:
    def version(name: str) -> str:
        if reading:
            return "1"
        raise RuntimeError(f"the API answered {scene.new[:300]!r}")

    reading, key = True, f"db:{scene.name}"
    with scene.guard.identified(scene.identity), scene.guard.hold(reads=key, version=version):
        pass
    reading = False
    return scene.refusal("write_row", writes=key, version=version)


def a_key(scene: Scene) -> str:
    key = f"db:{scene.name}"
    with scene.guard.identified(scene.identity), scene.guard.hold(reads=key):
        pass
    with scene.guard.identified(Identity("bob", "run")), scene.guard.hold(updates=key, name="update_row"):
        pass
    return scene.refusal("write_row", writes=key)


HOW: Sequence[Callable[[Scene], str]] = (
    changed_by_agent,
    changed_outside,
    changed_by_a_long_name,
    twice_in_a_turn,
    not_merged,
)
ONCE: Sequence[Callable[[Scene], str]] = (deleted, created, made_a_directory, cannot_be_compared, a_key)


def conflicts(root: Path, count: int = 100) -> Iterator[Conflict]:
    """Every content in another way and under another name, and then each of the other ways with every name."""
    guard = Guard(root=root, durable=False)
    names, agents, contents = [*NAMES.items()], [*AGENTS.items()], [*CONTENTS.items()]
    for turn in range(count):
        once = turn % 3 == 2
        if once:
            how, (label, content) = ONCE[turn // 3 % len(ONCE)], contents[turn // 3 % len(contents)]
        else:
            number = turn // 3 * 2 + turn % 3
            label, content = contents[number % len(contents)]
            how = HOW[(number + number // len(contents)) % len(HOW)]
            if how is not_merged and label in ("a sentence", "ends of lines", "source code, minified"):
                how = changed_by_agent
        called, name = names[turn * 7 % len(names)]
        who, agent = agents[turn % len(agents)]
        folder = root / str(turn)
        folder.mkdir()
        scene = Scene(guard, f"{turn}/{name}", agent, content)
        yield Conflict(f"{how.__name__.replace('_', ' ')}; {label}; name: {called}, agent: {who}", how(scene))


# -- tokens ----------------------------------------------------------------------------------------------------------


def counters(folder: Path | None) -> dict[str, Callable[[str], int]]:
    """Real tokenizers: every `NAME.json` of Hugging Face's format in the folder, if there is one."""
    if folder is None or not folder.is_dir():
        return {}
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return {}

    def counter(file: Path) -> Callable[[str], int]:
        tokenizer = Tokenizer.from_file(str(file))
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    return {file.stem: counter(file) for file in sorted(folder.glob("*.json"))}
