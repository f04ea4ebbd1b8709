"""YAML text -> plain values and the line of each: PyYAML's safe loader with bounds.

Refused, because a config file needs none of them: anchors and aliases (with which a small file
can grow without end), tags, several documents, deep nesting, keys that are no text or come twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

MAX_TEXT_BYTES = 1024 * 1024
MAX_DEPTH = 16
MAX_NODES = 20_000

_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
)

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """``line`` counts from 1; ``path`` leads to the key or value that is meant."""

    line: int
    path: KeyPath
    text: str

    def __str__(self) -> str:
        where = path_text(self.path)
        return (
            f"line {self.line}: {where}: {self.text}" if where else f"line {self.line}: {self.text}"
        )


@dataclass(slots=True)
class Document:
    """``value`` has dicts, tuples and scalars; ``lines`` the line of each path in it.

    ``mistakes`` are those found on the way: ``value`` then leaves out what they are about.
    """

    value: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """The line of the path, or of the innermost part of it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def path_text(path: KeyPath) -> str:
    """``policies[0].drill.rto``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(data: bytes) -> Document:
    """Never raises: what is wrong is in ``mistakes``."""
    document = Document()
    if len(data) > MAX_TEXT_BYTES:
        document.mistakes.append(Mistake(1, (), f"more than {MAX_TEXT_BYTES} bytes"))
        return document
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        document.mistakes.append(Mistake(line, (), "not UTF-8 text"))
        return document
    try:
        mistake = _bounds_mistake(text)
        if mistake is None:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is not None:
                document.value = _value(node, (), document, loader)
    except yaml.YAMLError as error:
        mistake = _syntax_mistake(text, error)
    if mistake is not None:
        document.mistakes.append(mistake)
    return document


def _bounds_mistake(text: str) -> Mistake | None:
    """Looks at the stream of events, before any tree is built."""
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return Mistake(
                line, (), "anchors (&) and aliases (*) are not supported; quote a text with * or &"
            )
        if isinstance(event, yaml.NodeEvent):
            count += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            return Mistake(
                line, (), "nested too deeply" if depth > MAX_DEPTH else "too many values"
            )
    return None


def _syntax_mistake(text: str, error: yaml.YAMLError) -> Mistake:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        if "undefined alias" in what or "alias" in (error.context or ""):
            what += "; quote a text that begins with *"
        if "character '\\t'" in what:
            what += "; indent with spaces"
        return Mistake(mark.line + 1 if mark else 1, (), what)
    position = getattr(error, "position", 0)
    return Mistake(text.count("\n", 0, position) + 1, (), "a character that YAML does not allow")


def _value(node: yaml.Node, path: KeyPath, document: Document, loader: yaml.SafeLoader) -> object:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if node.tag not in _PLAIN_TAGS:
        document.mistakes.append(
            Mistake(
                node.start_mark.line + 1, path, f"tags such as {node.tag[:40]!r} are not supported"
            )
        )
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document, loader)
    if isinstance(node, yaml.SequenceNode):
        return tuple(
            _value(item, (*path, index), document, loader) for index, item in enumerate(node.value)
        )
    try:
        value: object = loader.construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        # SafeLoader itself trips over a few scalars that look like numbers or dates.
        value = None
        document.mistakes.append(
            Mistake(node.start_mark.line + 1, path, f"can't read {node.value[:40]!r}; quote it")
        )
    return value


def _mapping(
    node: yaml.MappingNode, path: KeyPath, document: Document, loader: yaml.SafeLoader
) -> dict[str, object]:
    result: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            shown = f" {key_node.value[:40]!r}" if isinstance(key_node, yaml.ScalarNode) else ""
            document.mistakes.append(Mistake(line, path, f"the key{shown} is no text; quote it"))
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key in result:
            first = document.lines[here]
            document.mistakes.append(Mistake(line, here, f"given twice, first in line {first}"))
            continue
        document.lines[here] = line
        result[key] = _value(value_node, here, document, loader)
    return result
