"""YAML that people wrote, edited where it stands: every line that is not meant stays to the letter.

`read` parses a text to nodes that know their place in it. The editing functions take a text and nodes of it and return the new text; they work from
the end to the beginning, so that the places of what stands before stay true. They compute and never check: whoever edits reads the result again.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import Reader
from ruamel.yaml.scanner import Scanner
from ruamel.yaml.tokens import BlockEntryToken, KeyToken, Token, ValueToken

PLAIN = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./:-]*[A-Za-z0-9_/])?")
NOT_PLAIN = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""A text is written without quotes when every reader takes it for a text: this one reads YAML 1.2, the operator 1.1 (``no`` is false there)."""

PATH = re.compile(r"/(?:(?! #|: |:$| $)[^\x00-\x1f\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff])*")
PATH_IN_FLOW = re.compile(PATH.pattern.replace("[^", r"[^,\[\]{}"))
"""What begins with a slash is a text to every reader; where it stood without quotes it is written so."""

ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
BREAK = re.compile(r"\r\n|\n|\r")
REST_OF_LINE = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r|\Z)")
BETWEEN = re.compile(r"(?:\s|#[^\r\n]*)*")
PROPERTIES = re.compile(rf"(?:(?P<last>!<[^>\s]*>|[&!][^\s,\[\]{{}}]*){BETWEEN.pattern}){{0,2}}")
"""An anchor and a tag, with what stands between them and the value."""

SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""One character of JSON's, escaped in two halves."""

BLOCK_OF_ONE_LINE = re.compile(r"[|>][-+0-9]*[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r)[ ]*(?P<text>[^\r\n]+)")
YAML_TAG = "tag:yaml.org,2002:"
MERGE, TEXT = f"{YAML_TAG}merge", f"{YAML_TAG}str"


@dataclass(eq=False)
class Node:
    """A piece of the text, from ``start`` (its anchor and tag included) to ``end``: offsets in characters. ``value`` is in JSON's types."""

    kind: str
    """``scalar``, ``alias``, ``sequence`` or ``mapping``."""
    start: int
    end: int
    value: Any = None
    style: str | None = None
    """The quote, or ``|`` or ``>``, of a scalar."""
    tag: str | None = None
    anchor: str | None = None
    """The name that is defined here, or that an alias stands for."""
    target: Node | None = None
    """What an alias stands for."""
    flow: bool = False
    opened: int = 0
    """The offset behind the bracket of a flow collection."""
    marker: int = 0
    """The offset of an item's dash, or of a key or its question mark."""
    colon: int | None = None
    """Of a value: the offset behind its colon (behind its dash for an item); None when it has none."""
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)

    def get(self, key: str) -> Node | None:
        """The value of a key that stands here, not of one that is merged in."""
        return next((value for name, value in self.pairs if name.value == key and name.kind == "scalar"), None)

    def walk(self) -> Iterator[Node]:
        """This node and all in it, in the order of the text; not what an alias stands for."""
        yield self
        for key, value in self.pairs:
            yield from key.walk()
            yield from value.walk()
        for item in self.items:
            yield from item.walk()

    @property
    def block(self) -> bool:
        """Whether it is a collection in block style, which begins at a line of its own or behind a dash."""
        return self.kind in ("sequence", "mapping") and not self.flow

    @property
    def first(self) -> int:
        """The offset of the first dash or key of a block collection."""
        return self.items[0].marker if self.items else self.pairs[0][0].marker


@dataclass(frozen=True)
class Indents:
    """How a text indents in block style, in columns."""

    mapping: int = 2
    """A mapping below its key."""
    dash: int = 2
    """A dash below its key."""
    item: int = 2
    """What an item holds behind its dash."""


# --- reading ----------------------------------------------------------------------------------------------------------------------


class _Scanner(Scanner):
    """Remembers where dashes, keys and colons stand, which events do not tell; and takes a tab behind a value, as the operator does."""

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.reader.peek() == "\t" and not self.allow_simple_key:
            self.reader.forward()
            super().scan_to_next_token()

    def get_token(self) -> Token:
        token: Token = super().get_token()
        for kind in (BlockEntryToken, KeyToken, ValueToken):
            if isinstance(token, kind):
                self.seen: dict[type, list[int]]
                self.__dict__.setdefault("seen", {}).setdefault(kind, []).append(token.start_mark.index)
        return token


def read(text: str) -> Node | None:
    """The root of the one document of a text, None when it holds nothing. Raises `ValueError` with one line of words when it is not YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Reader, yaml.Scanner = Reader, _Scanner
    try:
        return _Reader(yaml, text).document()
    except (YAMLError, ValueError, IndexError, RecursionError) as error:  # a date of month 13 is a ValueError
        mark = getattr(error, "problem_mark", None)
        told = f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
        raise ValueError(" ".join(told.split())) from error


class _Reader:
    def __init__(self, yaml: YAML, text: str) -> None:
        self.text = text
        self.events: Iterator[Event] = yaml.parse(text)
        self.peeked: Event | None = None
        self.yaml = yaml
        self.seen: dict[type, list[int]] = {}
        self.anchors: dict[str, Node] = {}
        self.open: set[int] = set()

    def document(self) -> Node | None:
        self._next()
        self.seen = self.yaml.scanner.__dict__.setdefault("seen", {})
        root = None
        if not isinstance(self._peek(), StreamEndEvent):
            self._next()
            root = self._node()
            self._next()
            if not isinstance(self._peek(), StreamEndEvent):
                raise ValueError("there is another document; only one is read")
        return None if root is None or (root.kind == "scalar" and root.value is None) else root

    def _peek(self) -> Event:
        self.peeked = self.peeked or next(self.events)
        return self.peeked

    def _next(self) -> Event:
        event, self.peeked = self._peek(), None
        return event

    def _node(self) -> Node:
        event = self._next()
        start, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor)
            if target is None:
                raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor} stands for nothing: there is no &{event.anchor} before it")
            if id(target) in self.open:
                raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor} is within itself")
            return Node("alias", start, end, target.value, target=target, anchor=event.anchor)
        if isinstance(event, ScalarEvent):
            node = self._scalar(event, start, end)
        else:
            assert isinstance(event, CollectionStartEvent)
            kind = "mapping" if isinstance(event, MappingStartEvent) else "sequence"
            node = Node(kind, start, end, tag=event.tag, anchor=event.anchor, flow=bool(event.flow_style), opened=end)
        if node.anchor:
            self.anchors[node.anchor] = node
        if node.kind != "scalar":
            self.open.add(id(node))
            (self._mapping if node.kind == "mapping" else self._sequence)(node)
            self.open.remove(id(node))
        return node

    def _scalar(self, event: ScalarEvent, start: int, end: int) -> Node:
        tag = event.tag
        if tag is None or tag == "!":
            tag = str(self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit if tag is None else (False, True)))
        if event.style in ("|", ">"):
            written = self.text[start:end]
            if "+" in _header(written):
                end = start + len(written.removesuffix("\n").removesuffix("\r"))
            else:
                blank = event.value.rstrip("\n")[-1:].isspace()
                end = start + len(written.rstrip("\r\n" if blank else None))
        known = tag in self.yaml.constructor.yaml_constructors and tag != MERGE
        value = self.yaml.constructor.construct_object(ScalarNode(tag, event.value, event.start_mark, event.end_mark)) if known else event.value
        if not (value is None or isinstance(value, str | int | float)):
            value = str(value)
        if isinstance(value, str):
            value = SURROGATES.sub(lambda found: found[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)
        return Node("scalar", start, end, value, event.style, tag, event.anchor)

    def _sequence(self, node: Node) -> None:
        node.value = []
        while not self._over(node):
            item = self._node()
            dashes = self.seen.get(BlockEntryToken, [])
            if not node.flow:
                item.marker = dashes[bisect_left(dashes, item.start) - 1]
                item.colon = item.marker + 1
                _at_its_colon(item, item.colon)
            node.items.append(item)
            node.value.append(item.value)

    def _mapping(self, node: Node) -> None:
        while not self._over(node):
            key = self._node()
            keys = self.seen.get(KeyToken, [])
            key.marker = keys[bisect_right(keys, key.start) - 1] if keys and keys[0] <= key.start else key.start
            if node.flow and self.text[key.marker] != "?":
                key.marker = key.start
            value = self._node()
            colons = self.seen.get(ValueToken, [])
            at = bisect_left(colons, key.end)
            value.colon = colons[at] + 1 if at < len(colons) and colons[at] < max(value.start, key.end + 1) else None
            _at_its_colon(value, value.colon or key.end)
            node.pairs.append((key, value))
        node.value = self._merged(node)

    def _over(self, node: Node) -> bool:
        """Whether the collection ends here; then its end is known."""
        event = self._peek()
        if not isinstance(event, SequenceEndEvent | MappingEndEvent):
            return False
        self._next()
        if node.flow:
            node.end = event.end_mark.index
        elif node.items or node.pairs:
            last = node.items[-1] if node.items else node.pairs[-1][1]
            node.end = max(last.end, node.pairs[-1][0].end if node.pairs else 0, last.colon or 0)
        return True

    def _merged(self, node: Node) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        seen: list[Any] = []
        for key, value in node.pairs:
            if key.kind == "scalar" and key.tag == MERGE:
                for source in value.value if isinstance(value.value, list) else [value.value]:
                    if not isinstance(source, dict):
                        raise ValueError(f"{self._line(value)}: what << merges is not a mapping")
                    merged = source | merged
                continue
            if key.value in seen and any(type(key.value) is type(other) for other in seen if other == key.value):
                raise ValueError(f"{self._line(key)}: duplicate key {key.value!r}")
            seen.append(key.value)
            own[name_of(key)] = value.value
        return {**{key: value for key, value in merged.items() if key not in own}, **own} if merged else own

    def _line(self, node: Node) -> str:
        return f"line {len(BREAK.findall(self.text, 0, node.start)) + 1}"


def _at_its_colon(node: Node, at: int) -> None:
    """A value of no text stands where its colon or dash ends; the parser has it at the next token."""
    if node.kind == "scalar" and node.start == node.end:
        node.start = node.end = at


def _header(written: str) -> str:
    """The sign of a literal or folded text, with what it says on blank lines at the end: ``|+``."""
    return BREAK.split(written)[0].split("#")[0].split()[-1]


def name_of(key: Node) -> str:
    """A key as JSON has it: a text."""
    return str(key.value) if isinstance(key.value, str) else json.dumps(key.value)


def same(one: Any, other: Any) -> bool:
    """Whether two values in JSON's types mean the same; 1 and 1.0 do, 1 and true do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and (one == other or (one != one and other != other))


# --- new text ---------------------------------------------------------------------------------------------------------------------


def scalar(value: Any, quote: str | None = None) -> str:
    """One value on one line, as readers of YAML 1.1 and 1.2 both read it; a text between ``quote`` where that can be."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        told = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
        return told.replace("e", ".0e") if "e" in told and "." not in told else told  # 1e-05 is a text in YAML 1.1
    if isinstance(value, int):
        return str(value)
    if quote is None and PLAIN.fullmatch(value) and value.lower() not in NOT_PLAIN:
        return f"{value}"
    escaped = ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    if quote == '"' or escaped.count("\\") != 2 * value.count("\\") + value.count('"'):
        return escaped
    return f"""'{value.replace("'", "''")}'"""


@dataclass(frozen=True)
class Flow:
    """How a flow collection is written."""

    quote: str | None = None
    """A double quote when all texts have one, as in JSON."""
    tight: bool = False
    """No blanks behind colons and commas."""
    indent: str = ""
    """What each level is indented by when every value has a line of its own; empty for one line."""

    def text(self, value: Any, margin: str = "", end: str = "\n") -> str:
        """A value; ``margin`` is the indentation of the line that it begins on, ``end`` that of a line."""
        blank = "" if self.tight else " "
        if isinstance(value, dict):
            parts = [f"{scalar(key, self.quote)}:{blank}{self.text(item, margin + self.indent, end)}" for key, item in value.items()]
        elif isinstance(value, list):
            parts = [self.text(item, margin + self.indent, end) for item in value]
        else:
            return scalar(value, self.quote)
        left, right = "{}" if isinstance(value, dict) else "[]"
        if not parts or not self.indent:
            return left + f",{blank}".join(parts) + right
        inner = end + margin + self.indent
        return left + inner + f",{inner}".join(parts) + end + margin + right


def lines(value: Any, indents: Indents) -> list[str]:
    """A value in block style, without line ends; a scalar and what is empty are one line."""
    if isinstance(value, dict) and value:
        found = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                by = indents.mapping if isinstance(item, dict) else indents.dash
                found += [f"{scalar(key)}:", *(" " * by + line for line in lines(item, indents))]
            else:
                found.append(f"{scalar(key)}: {Flow().text(item)}")
        return found
    if isinstance(value, list) and value:
        found = []
        for item in value:
            first, *others = lines(item, indents)
            found += ["-".ljust(indents.item) + first, *(" " * indents.item + line for line in others)]
        return found
    return [Flow().text(value)]


# --- places in a text -------------------------------------------------------------------------------------------------------------


def line_start(text: str, at: int) -> int:
    """The offset at which the line of an offset begins."""
    return max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1


def column(text: str, at: int) -> int:
    """The offset of an offset in its line."""
    return at - line_start(text, at)


def line_end(text: str) -> str:
    """The line end that the text has."""
    found = BREAK.search(text)
    return found[0] if found else "\n"


def rest_of_line(text: str, at: int) -> int | None:
    """The offset behind the line, when only blanks and a comment stand between; else None."""
    found = REST_OF_LINE.match(text, at)
    return found.end() if found else None


def begins_line(text: str, at: int) -> bool:
    """Whether only blanks stand before the offset in its line."""
    return not text[line_start(text, at) : at].strip(" \t")


def with_comments_above(text: str, at: int, floor: int = 0) -> int:
    """The offset of the line at which ``at`` stands, or of the first of the comment lines directly above it that are indented as far or deeper.

    What begins before ``floor``, where the text before ends, is no comment.
    """
    deep, start = column(text, at), line_start(text, at)
    while start:
        above = line_start(text, start - (2 if text[start - 2 : start] == "\r\n" else 1))
        line = text[above:start]
        if above < floor or not line.lstrip(" \t").startswith("#") or len(line) - len(line.lstrip(" \t")) < deep:
            break
        start = above
    return start


def margin_of(text: str, at: int) -> str:
    """The blanks that the line of an offset begins with."""
    line = text[line_start(text, at) : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def indents_of(text: str, nodes: Sequence[Node], default: Indents) -> Indents:
    """How the first mapping in a mapping, the first list in a mapping and the first mapping in a list are indented."""
    found: dict[str, int] = {}
    for node in (inner for outer in nodes for inner in outer.walk()):
        if node.kind == "mapping" and node.block:
            for _, value in node.pairs:
                if value.block and begins_line(text, value.first):
                    name = "mapping" if value.kind == "mapping" else "dash"
                    found.setdefault(name, column(text, value.first) - column(text, node.first))
        if node.kind == "sequence" and node.block:
            for item in node.items:
                if item.kind == "mapping" and item.block and line_start(text, item.first) == line_start(text, item.marker):
                    found.setdefault("item", column(text, item.first) - column(text, item.marker))
    return Indents(found.get("mapping", default.mapping), found.get("dash", default.dash), found.get("item", default.item))


def flow_of(text: str, node: Node) -> Flow:
    """How a flow collection is written, told by the first key in it."""
    inner = next((inner for inner in node.walk() if inner.pairs), None)
    if inner is None:
        return Flow('"' if node.kind == "mapping" or any(item.style == '"' for item in node.items) else None)
    (key, value), *_ = inner.pairs
    own_lines = inner.flow and begins_line(text, key.start) and line_start(text, key.start) > inner.start
    indent = margin_of(text, key.start).removeprefix(margin_of(text, inner.start)) or "  " if own_lines else ""
    tight = key.style == '"' and value.colon is not None and value.colon == value.start < value.end
    return Flow('"' if key.style == '"' else None, tight, indent)


# --- editing ----------------------------------------------------------------------------------------------------------------------


def append_lines(text: str, at: int, new: Sequence[str], indent: int) -> str:
    """With lines of block style below the line in which ``at`` stands."""
    end, broken = line_end(text), " " * indent
    below = rest_of_line(text, at)
    below = len(text) if below is None else below
    block = end.join(broken + line for line in new)
    if below and text[below - 1] not in "\r\n":
        return text[:below] + end + block + text[below:]
    return text[:below] + block + end + text[below:]


def without_block(text: str, marker: int, end: int, floor: int | None = None) -> str:
    """Without an item or a pair of block style, from its dash or key to its ``end``; with ``floor`` also without its comments above."""
    below = rest_of_line(text, end)
    below = end if below is None else below
    if begins_line(text, marker):
        start = line_start(text, marker) if floor is None else with_comments_above(text, marker, floor)
        if start and below == len(text) and text[below - 1] not in "\r\n":  # the text has no line end, and will have none
            start -= 2 if text[start - 2 : start] == "\r\n" else 1
        return text[:start] + text[below:]
    sibling = below + column(text, marker)
    if begins_line(text, sibling) and line_start(text, sibling) == below and text[sibling : sibling + 1] not in ("", "#", "\r", "\n", " "):
        return text[:marker] + text[sibling:]
    return text[:marker].rstrip(" ") + text[below - (2 if text[below - 2 : below] == "\r\n" else 1) :]


def comma_behind(text: str, at: int) -> int | None:
    """The offset of the comma that follows in a flow collection, None when there is none."""
    found = BETWEEN.match(text, at)
    comma = found.end() if found else at
    return comma if text[comma : comma + 1] == "," else None


def flow_inserted(text: str, collection: Node, before: int | None, new: str, flow: Flow) -> str:
    """A flow collection with ``new`` behind the entry that ends at ``before``, or as the first one when that is None."""
    end = line_end(text)
    blank = "" if flow.tight else " "
    entries = _spans(collection)
    if before is None:
        if entries:
            return text[: entries[0][0]] + new + f",{blank}" + text[entries[0][0] :]
        return text[: collection.opened] + new + text[collection.opened :]
    start = next(start for start, stop in entries if stop == before)
    if not begins_line(text, start):
        return f"{text[:before]},{blank}{new}{text[before:]}"
    margin = text[line_start(text, start) : start]
    comma = comma_behind(text, before)
    below = rest_of_line(text, before if comma is None else comma + 1)
    if below is None or below == len(text):
        return f"{text[:before]},{end}{margin}{new}{text[before:]}"
    if comma is None:
        return f"{text[:before]},{text[before:below]}{margin}{new}{end}{text[below:]}"
    return f"{text[:below]}{margin}{new},{end}{text[below:]}"


def without_flow(text: str, collection: Node, index: int) -> str:
    """A flow collection without one of its entries, its comma and, when it has its own lines, these."""
    entries = _spans(collection)
    start, stop = entries[index]
    comma = comma_behind(text, stop)
    before = entries[index - 1][1] if index else None
    below = rest_of_line(text, stop if comma is None else comma + 1)
    if begins_line(text, start) and below is not None and below < len(text):
        text = text[: with_comments_above(text, start, before or 0)] + text[below:]
        return _without_comma(text, before) if comma is None and before is not None else text
    if before is not None:
        if "#" not in text[before:start]:
            return text[:before] + text[stop:]
        text = text[:start] + text[stop if comma is None else comma + 1 :]
        return _without_comma(text, before) if comma is None else text
    if comma is None:
        return text[:start] + text[stop:]
    following = re.compile(r"\s*").match(text, comma + 1)
    resumed = following.end() if following and text[following.end()] != "#" else comma + 1
    return text[:start] + (text[comma + 1 :] if text[resumed] in "]}" else text[resumed:])


def _without_comma(text: str, at: int) -> str:
    comma = comma_behind(text, at)
    return text if comma is None else text[:comma] + text[comma + 1 :]


def _spans(collection: Node) -> list[tuple[int, int]]:
    if collection.kind == "sequence":
        return [(item.start, item.end) for item in collection.items]
    return [(key.marker, max(key.end, value.end, value.colon or 0)) for key, value in collection.pairs]


def replaced(text: str, parent: Node, node: Node, new: Any, indents: Indents) -> str:
    """With another value in place of a node, in its style where that can be: flow in flow; anchor, tag and quotes of a text."""
    if parent.flow or node.flow or not (isinstance(new, dict | list) and new):
        if isinstance(new, str) and (at := _value_at(text, node)) is not None:
            plain = (PATH_IN_FLOW if parent.flow else PATH).fullmatch(new)
            if node.style in (None, "'", '"'):
                told = new if plain and node.style is None else scalar(new, node.style)
                if text.startswith('"\\/', at):  # whose JSON escapes slashes, escapes them all
                    told = told.replace("/", "\\/")
                return text[:at] + told + text[node.end :]
            if plain:
                return text[:at] + new + text[node.end :]
        flow = flow_of(text, node if node.flow and (node.items or node.pairs) else parent) if parent.flow or node.flow else Flow()
        return _inline(text, node, flow.text(new, margin_of(text, node.start), line_end(text)))
    if node.colon is None:
        return text
    under_key = parent.kind == "mapping"
    deep = column(text, parent.first)
    by = indents.dash if isinstance(new, list) else indents.mapping
    if node.block and node.first == node.start:
        kept = (node.kind == "sequence") == isinstance(new, list)
        indent = column(text, node.first) if kept or not under_key else deep + by
        written = lines(new, indents)
        if begins_line(text, node.start):
            start = line_start(text, node.start)
            return text[:start] + line_end(text).join(" " * indent + line for line in written) + text[node.end :]
        return text[: node.start] + (line_end(text) + " " * indent).join(written) + text[node.end :]
    if under_key:
        return append_lines(text[: node.colon] + text[node.end :], node.colon, lines(new, indents), deep + by)
    indent = deep + indents.item
    return text[: node.colon] + " " * (indents.item - 1) + (line_end(text) + " " * indent).join(lines(new, indents)) + text[node.end :]


def _value_at(text: str, node: Node) -> int | None:
    """The offset of a text behind its anchor and tag, and below the sign of a literal or folded one; None where another text cannot stand there."""
    if node.kind != "scalar" or not isinstance(node.value, str):
        return None
    found = PROPERTIES.match(text, node.start, node.end)
    at = found.end() if found else node.start
    if at == node.end or (at > node.start and str(node.tag).startswith(YAML_TAG) and node.tag != TEXT):
        return None
    if node.style in ("|", ">"):
        only = BLOCK_OF_ONE_LINE.fullmatch(text, at, node.end)
        return only.start("text") if only and only["text"] == node.value else None
    return at


def _inline(text: str, node: Node, written: str) -> str:
    if node.block and begins_line(text, node.start) and node.colon is not None:
        text = without_block(text, node.first, node.end)
        return f"{text[: node.colon]} {written}{text[node.colon :]}"
    behind_colon = (": " if node.colon is None else " ") if node.start == node.end else ""
    return text[: node.start] + behind_colon + written + text[node.end :]


def updated(text: str, parent: Node, node: Node, new: Any, indents: Indents) -> str:
    """With another value in place of a node; what is equal in it keeps its text, to the letter."""
    if same(node.value, new):
        return text
    if node.kind == "mapping" and isinstance(new, dict):
        merged = set(node.value) - {name_of(key) for key, _ in node.pairs}
        unmerge = not merged <= set(new)
        kept = [(name_of(key) in new and key.tag != MERGE) or (key.tag == MERGE and not unmerge) for key, _ in node.pairs]
        if any(kept):
            standing = {name_of(key) for key, _ in node.pairs if key.tag != MERGE}
            inherited = {} if unmerge else {key: node.value[key] for key in merged}
            added = {key: value for key, value in new.items() if key not in standing and not (key in inherited and same(inherited[key], value))}
            text = with_pairs(text, node, added, indents)
            for index in reversed(range(len(node.pairs))):
                key, value = node.pairs[index]
                if not kept[index]:
                    text = without_pair(text, node, index)
                elif key.tag != MERGE:
                    text = updated(text, node, value, new[name_of(key)], indents)
            return text
    if node.kind == "sequence" and isinstance(new, list):
        matched = _matched(node, new)
        if matched:
            text = with_items(text, node, new[len(matched) :], indents)
            for index in reversed(range(len(node.items))):
                text = updated(text, node, node.items[index], new[matched[index]], indents) if index in matched else without_item(text, node, index)
            return text
    return replaced(text, parent, node, new, indents)


def _matched(node: Node, new: list[Any]) -> dict[int, int]:
    """Which items of a sequence are the first ones of ``new``: the same name, or else the same value; none when their order is another."""

    def known_by(value: Any) -> str:
        return json.dumps(value.get("name", value) if isinstance(value, dict) else value, sort_keys=True)

    old, wanted = [known_by(item.value) for item in node.items], [known_by(value) for value in new]
    if len(set(old)) < len(old) or len(set(wanted)) < len(wanted):
        return {}
    there = [key for key in old if key in wanted]
    return {old.index(key): index for index, key in enumerate(there)} if there == wanted[: len(there)] else {}


def _open_ended(text: str, node: Node) -> bool:
    """Whether a literal or folded text ends the whole text without a line end: with one it would mean another value."""
    *_, last = node.walk()
    return last.style in ("|", ">") and "-" not in _header(text[last.start : last.end]) and not BREAK.search(text, last.end)


def with_pairs(text: str, mapping: Node, new: Mapping[str, Any], indents: Indents, after: int | None = None) -> str:
    """With more keys at the end of a mapping, or behind the pair of index ``after`` (-1: as the first ones)."""
    if not new:
        return text
    index = len(mapping.pairs) - 1 if after is None else after
    if index == len(mapping.pairs) - 1 and mapping.block and _open_ended(text, mapping):
        index -= 1
    spans = _spans(mapping)
    before = spans[index][1] if index >= 0 else None
    if mapping.flow:
        flow = flow_of(text, mapping)
        start = spans[index][0] if index >= 0 else mapping.opened
        margin = margin_of(text, start)
        for key, value in reversed(list(new.items())):
            blank = "" if flow.tight else " "
            text = flow_inserted(text, mapping, before, f"{scalar(key, flow.quote)}:{blank}{flow.text(value, margin, line_end(text))}", flow)
        return text
    indent = column(text, mapping.first)
    written = lines(dict(new), indents)
    if before is None:
        return text[: mapping.first] + "".join(line + line_end(text) + " " * indent for line in written) + text[mapping.first :]
    return append_lines(text, before, written, indent)


def without_pair(text: str, mapping: Node, index: int, *, comments: bool = True) -> str:
    """Without one pair of a mapping that has others."""
    if mapping.flow:
        return without_flow(text, mapping, index)
    start, end = _spans(mapping)[index]
    if index:
        text = _not_swallowed(text, end, mapping.pairs[index - 1][1], column(text, start))
    return without_block(text, start, end, (_spans(mapping)[index - 1][1] if index else 0) if comments else None)


def with_items(text: str, sequence: Node, new: Sequence[Any], indents: Indents, like: Node | None = None) -> str:
    """With more items at the end of a sequence that has some, or of an empty one of flow style; written as ``like`` is where that is flow."""
    if not new:
        return text
    if sequence.flow:
        flow = flow_of(text, like or sequence)
        before = sequence.items[-1].end if sequence.items else None
        start = sequence.items[-1].start if sequence.items else sequence.opened
        margin = margin_of(text, start)
        for value in reversed(new):
            text = flow_inserted(text, sequence, before, flow.text(value, margin, line_end(text)), flow)
        return text
    written, indent = lines(list(new), indents), column(text, sequence.first)
    last = sequence.items[-1]
    if _open_ended(text, sequence) and begins_line(text, last.marker):
        above = with_comments_above(text, last.marker, sequence.items[-2].end if len(sequence.items) > 1 else 0)
        return text[:above] + "".join(" " * indent + line + line_end(text) for line in written) + text[above:]
    return append_lines(text, max(sequence.end, last.colon or 0), written, indent)


def without_item(text: str, sequence: Node, index: int) -> str:
    """Without one item of a sequence; what is left of an only one is nothing, not even brackets in block style."""
    if sequence.flow:
        return without_flow(text, sequence, index)
    item = sequence.items[index]
    end = max(item.end, item.colon or 0)
    if index:
        text = _not_swallowed(text, end, sequence.items[index - 1], column(text, item.marker))
    return without_block(text, item.marker, end, sequence.items[index - 1].end if index else 0)


def _not_swallowed(text: str, at: int, before: Node, indent: int) -> str:
    """With the comments below the line of ``at`` no deeper than ``indent``, when a literal or folded text before would take them for its own.

    It takes what is as deep as its lines, up to a comment that is not. One that keeps its blank lines would take more of them too; they go.
    """
    *_, last = before.walk()
    below = rest_of_line(text, at)
    if last.style not in ("|", ">") or below is None:
        return text
    if below == len(text) and text[-1] not in "\r\n" and "-" not in _header(text[last.start : last.end]):
        return text + line_end(text)  # the text before had one, and is to keep it
    lead, found = text[:below], re.compile(r"(?:[ ]*(?:#[^\r\n]*)?(?:\r\n|\n|\r|\Z))*").match(text, below)
    between = found[0].splitlines(True) if found else []
    comment = next((index for index, line in enumerate(between) if line.strip()), len(between))
    margins = [len(line) - len(line.lstrip(" ")) for line in between]
    deep = _text_column(text, last, before, indent)
    shallow = between
    if any(margin >= deep + (index < comment) for index, margin in enumerate(margins[: comment + 1])):
        shallow = [line[max(margin - indent, 0) :] for line, margin in zip(between, margins, strict=True)]
    if "+" in _header(text[last.start : last.end]):
        shallow = shallow[comment:]
    return lead + "".join(shallow) + text[below + len("".join(between)) :]


def _text_column(text: str, node: Node, within: Node, outer: int) -> int:
    """The column from which on lines belong to a literal or folded text, the last value ``within`` what stands at ``outer``."""
    parents = (other for other in within.walk() if other.block and node in (*other.items, *(value for _, value in other.pairs)))
    outer = next((column(text, parent.first) for parent in parents), outer)
    header, *written = BREAK.split(text[node.start : node.end])
    said = re.search("[1-9]", _header(header))
    margins = (len(line) - len(line.lstrip(" ")) for line in written if line.strip(" "))
    return outer + int(said[0]) if said else next(margins, outer + 1)
