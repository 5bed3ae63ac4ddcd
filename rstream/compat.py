"""Whether what is written by one schema can be read by another: the differences, one line each. Pure.

Only what is certain to matter counts: fields, their types and their sets of values. Limits (lengths, bounds, patterns)
and validators in Python are not compared: who cannot read an entry because of them sets it aside as `invalid`.
docs/schemas.md has the rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_PROSE = ("title", "description", "examples", "deprecated")
_NAMED = ("properties", "patternProperties", "$defs")
_ANY_TEXT = ("", "path", "password")
"""Formats that any text has."""

Node = Mapping[str, Any]


def digest(schema: Node) -> str:
    """What tells two schemas apart. Titles and descriptions do not: who rewords a docstring keeps the version."""
    text = json.dumps(_shape(schema), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shape(node: Any, names: bool = False) -> Any:
    """Without prose. names: the keys are the users' own, of fields."""
    if isinstance(node, list):
        return [_shape(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    if names:
        return {name: _shape(inner) for name, inner in node.items()}
    kept = {name: inner for name, inner in node.items() if name not in _PROSE}
    if "required" in kept:
        kept["required"] = sorted(kept["required"])  # the order of fields is none of the schema's
    return {
        name: inner if name in ("default", "enum", "const") else _shape(inner, name in _NAMED)
        for name, inner in kept.items()
    }


def differences(written: Node, read: Node) -> list[str]:
    """Why a consumer with the schema `read` could not read what is written by the schema `written`; [] if it can."""
    return list(dict.fromkeys(_Comparison(written, read).all()))


class _Comparison:
    """At any depth. Models may contain their own kind: a pair that is being compared already is taken for readable, and
    no pair is compared twice. What was found readable while a pair was taken for it is forgotten when that one turns
    out not to be; what is not readable even so never is.
    """

    def __init__(self, written: Node, read: Node) -> None:
        self._written, self._read = written, read
        self._good: dict[tuple[int, int], tuple[Node, Node]] = {}  # nodes are held, for they are known by their ids
        self._bad: dict[tuple[int, int], tuple[Node, Node, list[str]]] = {}

    def all(self) -> list[str]:
        return self._object(self._written, self._read, "")

    def _compare(self, written: Node, read: Node, at: str) -> list[str]:
        ways_out = list(options(written, self._written))
        ways_in = list(options(read, self._read))
        found = []
        for option in ways_out:
            tries = [self._plain(option, other, at) for other in ways_in]
            if any(not problems for problems in tries):
                continue
            alike = [
                problems
                for other, problems in zip(ways_in, tries, strict=True)
                if "enum" in {*option} & {*other}
                or (other.get("type") == option.get("type") in ("object", "array") and not _apart(option, other))
            ]
            found += alike[0] if len(alike) == 1 else [_retyped(at, ways_out, ways_in)]
        return found

    def _plain(self, written: Node, read: Node, at: str) -> list[str]:
        """Of two that are no unions."""
        can, may = _values(read), _values(written)
        if can is not None:
            return _lacking(written, read, at)
        kind = read.get("type")
        if kind is None:
            return []
        if may is not None:
            good = all(_is_of(value, kind) for value in may) and form(read) == form(written)
            return [] if good else [_retyped(at, [written], [read])]
        if (written.get("type"), kind) == ("integer", "number"):
            return []
        if written.get("type") != kind or (kind == "string" and not _readable(form(written), form(read))):
            return [_retyped(at, [written], [read])]
        return self._inside(written, read, at) if kind in ("object", "array") else []

    def _inside(self, written: Node, read: Node, at: str) -> list[str]:
        """Of two objects, or two arrays."""
        pair = (id(written), id(read))
        if pair in self._good:
            return []
        if pair in self._bad:
            return self._bad[pair][2]  # told as where it was found first
        before = len(self._good)
        self._good[pair] = (written, read)
        found = (self._object if read.get("type") == "object" else self._array)(written, read, at)
        if found:
            for each in [*self._good][before:]:
                del self._good[each]
            found = list(dict.fromkeys(found))
            self._bad[pair] = (written, read, found)
        return found

    def _array(self, written: Node, read: Node, at: str) -> list[str]:
        heads, wanted = written.get("prefixItems", []), read.get("prefixItems", [])
        if wanted and len(heads) != len(wanted):
            told = f"{len(heads)} items" if heads else "any number of items"
            return [f"{at}: written with {told}, read with {len(wanted)}"]
        rest = read.get("items", {})
        pairs = list(zip(heads, wanted or [rest] * len(heads), strict=True))
        if "items" in written or not (heads or wanted):
            pairs.append((written.get("items", {}), rest))
        return [each for out, into in pairs for each in self._compare(out, into, f"{at}[]")]

    def _object(self, written: Node, read: Node, at: str) -> list[str]:
        fields, wanted = written.get("properties", {}), read.get("properties", {})
        others = read.get("additionalProperties", True)
        if name := _apart(written, read):  # there is no need to look deeper
            return [_retyped(_at(at, name), [fields[name]], [wanted[name]])]
        found = []
        for name in read.get("required", ()):
            if name not in fields:
                found.append(f"{_at(at, name)}: required, and not written")
            elif not _always(written, name):
                found.append(f"{_at(at, name)}: required, and not always written")
        for name, field in fields.items():
            if name in wanted or isinstance(others, Mapping):
                found += self._compare(field, wanted.get(name, others), _at(at, name))
            elif others is False:
                found.append(f"{_at(at, name)}: written, and refused as an unknown field")
        if others is False and _rest(written):
            found.append(f"{_at(at, '*')}: unknown fields may be written, and are refused")
        if not wanted:
            found += self._compare(_keys(written), _keys(read), f"{at or 'event'}: keys")
        for field in _rest(written):
            for into in _rest(read) if not wanted else ():
                found += self._compare(field, into, _at(at, "*"))
        return found


def options(node: Node, root: Node) -> Iterator[Node]:
    """The plain schemas that a value may have: references followed, unions taken apart."""
    while reference := node.get("$ref"):
        node = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
    if len(both := node.get("allOf", ())) == 1:
        yield from options(both[0], root)
    elif union := (*node.get("anyOf", ()), *node.get("oneOf", ())):
        for each in union:
            yield from options(each, root)
    elif isinstance(kinds := node.get("type"), list):
        for kind in kinds:
            yield {**node, "type": kind}
    else:
        yield node


def form(node: Node) -> str:
    """What the text of a string schema is: "" for any, "bytes" for what is bytes in the payload, else its format."""
    if node.get("contentEncoding") or node.get("format") == "binary":
        return "bytes"
    return str(node.get("format", "")) if node.get("type") == "string" else ""


def _readable(written: str, read: str) -> bool:
    if written == read or (written.startswith("uuid") and read == "uuid"):
        return True
    return read in _ANY_TEXT and written != "bytes"


def _values(node: Node) -> list[Any] | None:
    """The values of an enum or a literal."""
    found = [node["const"]] if "const" in node else node.get("enum")
    return None if found is None else list(found)


def _lacking(written: Node, read: Node, at: str) -> list[str]:
    can, may = _values(read) or [], _values(written)
    if may is None:
        return [_retyped(at, [written], [read])]
    known = _known(can)
    lacking = [value for value in may if (type(value), value) not in known]
    return [f"{at}: {', '.join(map(repr, lacking[:5]))} may be written, and is not read"] if lacking else []


def _apart(written: Node, read: Node) -> str:
    """The field that tells these two objects of a union apart: both have a set of values, with none in common."""
    fields, wanted = written.get("properties", {}), read.get("properties", {})
    for name in fields:
        may, can = _values(fields[name]), _values(wanted.get(name, {}))
        if may and can and not _known(may) & _known(can):
            return str(name)
    return ""


def _known(values: Iterable[Any]) -> set[Any]:
    return {(type(value), value) for value in values}


def _is_of(value: Any, kind: str) -> bool:
    kinds = {
        bool: ("boolean",),
        int: ("integer", "number"),
        float: ("number",),
        str: ("string",),
        type(None): ("null",),
    }
    return kind in kinds.get(type(value), ())


def _always(written: Node, name: str) -> bool:
    """Whether the field is in every payload: rstream writes defaults out."""
    field = written["properties"][name]
    defaulted = {"default", "x-rstream-default"} & {*field} and "x-rstream-unstored" not in field
    return name in written.get("required", ()) or bool(defaulted)


def _rest(node: Node) -> list[Node]:
    """The schemas of what has no name of its own, as in a dict."""
    others = node.get("additionalProperties")
    found = [others] if isinstance(others, Mapping) else [{}] if others is True else []
    return [*found, *node.get("patternProperties", {}).values()]


def _keys(node: Node) -> Node:
    """The schema of the names of what has no fixed ones, as in a dict."""
    fixed = {"enum": [*node["properties"]]} if node.get("properties") else {"type": "string"}
    return node.get("x-rstream-keys", fixed)  # type: ignore[no-any-return]


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _retyped(at: str, written: list[Node], read: list[Node]) -> str:
    return f"{at}: written as {told(written)}, read as {told(read)}"


def told(kinds: list[Node]) -> str:
    """The type of a field for people."""
    return " or ".join(dict.fromkeys(_told(node) for node in kinds))


def _told(node: Node) -> str:
    if (values := _values(node)) is not None:
        return " or ".join(map(repr, values[:5])) + (" or …" if len(values) > 5 else "")
    kind = form(node) or str(node.get("type", "anything"))
    return {"object": f"object {node['title']}" if "title" in node else "object"}.get(kind, kind)
