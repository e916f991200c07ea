"""YAML that says what it means: text to nodes that remember where they stood, with every fault found on the way.

PyYAML's scanner reads the text; what a scalar means is decided here, by YAML 1.2's rules and not by 1.1's: ``no`` is text, ``1:30`` is not 90,
``012`` is not 10. Nodes are built from the stream of events, without recursion, so that no text is deep, large or tangled enough to do harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_BYTES = 256 * 1024
MOST_DEPTH = 20
MOST_NODES = 10_000
MOST_ALIASES = 100

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})?(\.[0-9]{0,40})?([eE][-+]?[0-9]{1,3})?")


@dataclass(slots=True, kw_only=True)
class Node:
    """A value of the file, and where it stands there."""

    value: bool | int | float | str | list[Node] | dict[str, Entry] | None
    line: int = 0
    """Counted from 1."""
    column: int = 0
    written: str = ""
    """As the file has it, short enough to be shown."""
    quoted: bool = False
    """Text in quotes: certainly meant as text."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A key of a mapping with its value."""

    node: Node
    line: int = 0
    """Where the key stands."""
    column: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong with a text."""

    line: int
    column: int
    key: str
    wrong: str
    right: str
    got: str | None = None

    def __str__(self) -> str:
        got = "" if self.got is None else f" (got {self.got})"
        return f"{self.key}: {self.wrong}{got}; {self.right}" if self.key else f"{self.wrong}{got}; {self.right}"


class _Hopeless(Exception):
    """A fault after which nothing more can be read."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def parse(text: str) -> tuple[Node | None, list[Fault]]:
    """Read one YAML document; an empty one is an empty mapping. Without a node, the last fault says why nothing could be read."""
    import yaml

    builder = _Builder()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except _Hopeless as hopeless:
        return None, [*builder.faults, hopeless.fault]
    except yaml.MarkedYAMLError as error:
        # An unclosed quote is found at the end of the file and mended where it begins.
        unclosed = error.context_mark and "quoted" in str(error.context)
        mark = error.context_mark if unclosed else error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        says = ", ".join(part for part in (error.context, error.problem) if part)
        return None, [*builder.faults, Fault(line=line, column=column, key="", wrong=f"this is not YAML: {says}", right=_remedy(text, line, says))]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: PyYAML without libyaml, over "\UFFFFFFFF"
        position = getattr(error, "position", 0)
        before = text[: position if isinstance(position, int) else 0]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        right = "remove the control character or write it as an escape in double quotes"
        return None, [*builder.faults, Fault(line=line, column=column, key="", wrong="this character may not stand in YAML", right=right)]
    return builder.root or Node(value={}, line=1, column=1), builder.faults


def from_object(value: object) -> tuple[Node, list[Fault]]:
    """Make nodes out of an object that JSON brought, within the same bounds; what exceeds them is left out as null."""
    faults: list[Fault] = []
    left = MOST_NODES

    def convert(value: object, depth: int) -> Node:
        nonlocal left
        left -= 1
        if depth > MOST_DEPTH or left < 0:
            if not faults:
                faults.append(Fault(line=0, column=0, key="", wrong="too deep or too large", right="write only the keys that you need"))
            return Node(value=None, written="null")
        if isinstance(value, Mapping):
            members = {str(key): Entry(node=convert(member, depth + 1)) for key, member in value.items()} if left >= len(value) else {}
            return Node(value=members, written="a mapping")
        if isinstance(value, list | tuple):
            return Node(value=[convert(member, depth + 1) for member in value] if left >= len(value) else [], written="a list")
        if value is None or isinstance(value, bool):
            return Node(value=value, written={None: "null", True: "true", False: "false"}[value])
        if isinstance(value, int):
            if abs(value) >= 10**18:
                return Node(value="a huge number", written="a huge number")
            return Node(value=value, written=str(value))
        if isinstance(value, float):
            return Node(value=value, written=repr(value))
        return Node(value=str(value), written=shown(str(value), quoted=True), quoted=True)

    return convert(value, 0), faults


def shown(text: str, *, quoted: bool = False) -> str:
    """Cut text short and make it harmless for a terminal and a log."""
    short = text if len(text) <= 60 else text[:57] + "..."
    harmless = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in short)
    return f'"{harmless}"' if quoted else harmless


def plain(text: str) -> bool | int | float | str | None:
    """Say what an unquoted scalar means."""
    if text in {"", "~", "null"}:
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and any(char.isdigit() for char in re.split("[eE]", text)[0]):
        number = float(text)
        # 1e999 is no number that anything here could use; as text it gets its complaint where it stands.
        return text if number in {float("inf"), float("-inf")} else number
    return text


def _remedy(text: str, line: int, says: str) -> str:
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in says:
        return "put text that contains a colon in quotes, and check the indentation"
    if "undefined alias" in says:
        return "put text that begins with * in quotes"
    if "%" in here.lstrip()[:1] or "@" in here or "`" in here:
        return "put text that begins with %, @ or ` in quotes"
    return "check quotes, brackets and indentation here and in the line above"


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Node
    anchor: str | None
    key: Node | None = None
    merges: list[Node] = field(default_factory=list)


class _Builder:
    """Takes events one by one and puts nodes together, keeping its own stack."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = self._aliases = self._documents = 0

    def take(self, event: object) -> None:
        kind = type(event).__name__
        mark = getattr(event, "start_mark")  # noqa: B009  -- the events' base class has no type hints
        line, column = mark.line + 1, mark.column + 1
        if kind in {"ScalarEvent", "SequenceStartEvent", "MappingStartEvent"}:
            self._begin(event, kind, line, column)
        elif kind == "AliasEvent":
            self._alias(str(getattr(event, "anchor", "")), line, column)
        elif kind in {"SequenceEndEvent", "MappingEndEvent"}:
            self._end()
        elif kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                self._stop(line, column, "a second document begins here", "keep one document in a file, without further --- lines")

    def _begin(self, event: object, kind: str, line: int, column: int) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            self._stop(line, column, f"more than {MOST_NODES} values", "keep the file small")
        if len(self._stack) >= MOST_DEPTH:
            self._stop(line, column, f"nested deeper than {MOST_DEPTH} levels", "nothing here needs more than five")
        if getattr(event, "tag", None) is not None:
            self._fault(line, column, "tags have no meaning here", f"leave {shown(str(getattr(event, 'tag', '')))} out")
        anchor = getattr(event, "anchor", None)
        if kind == "ScalarEvent":
            text, quoted = str(getattr(event, "value", "")), bool(getattr(event, "style", ""))
            node = Node(value=text if quoted else plain(text), line=line, column=column, quoted=quoted)
            node.written = shown(text, quoted=quoted) or "nothing"
            if anchor:
                self._anchors[anchor] = node
            self._add(node)
        else:
            empty: list[Node] | dict[str, Entry] = [] if kind == "SequenceStartEvent" else {}
            node = Node(value=empty, line=line, column=column, written="a list" if kind == "SequenceStartEvent" else "a mapping")
            self._stack.append(_Open(node, anchor))

    def _alias(self, name: str, line: int, column: int) -> None:
        self._aliases += 1
        if self._aliases > MOST_ALIASES:
            self._stop(line, column, f"more than {MOST_ALIASES} aliases", "write the values out")
        node = self._anchors.get(name)
        if node is None:
            inside = any(each.anchor == name for each in self._stack)
            wrong = f"the alias *{shown(name)} stands inside of what it names" if inside else f"there is no anchor &{shown(name)} before this alias"
            self._fault(line, column, wrong, "write the value out, or put text that begins with * in quotes")
            node = Node(value=None, line=line, column=column, written=f"*{shown(name)}")
        self._add(node)

    def _end(self) -> None:
        done = self._stack.pop()
        members = done.node.value
        if isinstance(members, dict):
            # `<<: *base`: what the mapping says itself counts, then the first of the bases.
            for base in done.merges:
                if isinstance(base.value, dict):
                    for key, entry in base.value.items():
                        members.setdefault(key, entry)
        if done.anchor:
            self._anchors[done.anchor] = done.node
        self._add(done.node)

    def _add(self, node: Node) -> None:
        if not self._stack:
            self.root = node
            return
        top = self._stack[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        elif top.key is None:
            top.key = node
        else:
            key, top.key = top.key, None
            self._member(top, key, node)

    def _member(self, top: _Open, key: Node, node: Node) -> None:
        members = top.node.value
        if not isinstance(members, dict):
            return
        if key.value == "<<" and not key.quoted:
            bases = node.value if isinstance(node.value, list) else [node]
            if not all(isinstance(base.value, dict) for base in bases):
                self._fault(key.line, key.column, "<< takes a mapping, or a list of mappings, from elsewhere in the file", "write `<<: *name`", node)
            top.merges += bases
        elif not isinstance(key.value, str):
            self._fault(key.line, key.column, "a key must be a word", "write one of the keys of `stepwatch config schema`", key)
        elif key.value in members:
            first = members[key.value].line
            self._fault(key.line, key.column, f"this key stands here a second time, first in line {first}", "keep one of them", name=key.value)
        else:
            members[key.value] = Entry(node=node, line=key.line, column=key.column)

    def _path(self, name: str | None) -> str:
        """The key that is being read, as ``outputs.0.codec``."""
        parts: list[str] = []
        for each in self._stack:
            if isinstance(each.node.value, list):
                parts.append(str(len(each.node.value)))
            elif each.key is not None:
                parts.append(shown(str(each.key.value)) if isinstance(each.key.value, str) else each.key.written)
        return ".".join(parts if name is None else [*parts, shown(name)])

    def _fault(self, line: int, column: int, wrong: str, right: str, got: Node | None = None, *, name: str | None = None) -> None:
        self.faults.append(Fault(line=line, column=column, key=self._path(name), wrong=wrong, right=right, got=None if got is None else got.written))

    def _stop(self, line: int, column: int, wrong: str, right: str) -> None:
        raise _Hopeless(Fault(line=line, column=column, key="", wrong=wrong, right=right))
