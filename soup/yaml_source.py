"""val.yaml as plain values that know their line: `extends`, `--set` and `${VAR}` done, nothing validated yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from soup import SoupError

Key = tuple[str | int, ...]

_DEEPEST = 20  # val.yaml needs five levels; more is an alias that contains itself
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str")}
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_INT = re.compile(r"[-+]?\d{1,18}")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
_VARIABLE = re.compile(r"(?P<escaped>\$\$\{)|\$\{(?P<name>[A-Za-z_]\w*)(:-(?P<default>[^}]*))?\}|\$\{")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing for the user to correct: where it stands (`val.yaml:12`), under which key, and a sentence."""

    where: str
    key: Key
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {dotted(self.key)}: {self.text}" if self.key else f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Source:
    """Values of dict, list, str, int, float, bool and None, with the file and line of every key."""

    values: dict[str, object] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Where `key` stands, or the nearest key around it."""
        return next((self.places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.places), "val.yaml")


def read_source(path: Path, *, environment: Mapping[str, str], shorthands: Mapping[str, str]) -> Source:
    """Read a file and what it extends. The nearer file wins: mappings merge, lists and all else are replaced.

    `shorthands`: a top-level key that may be a bare list → the key below it that the list then stands for.
    Numbers, `true`, `false` and `null` are as in YAML 1.2 (`1e-3` is a number, `no` and `on` are text).
    `${VAR}` and `${VAR:-default}` are filled in first and typed after; `$${` is a plain `${`.

    Raises SoupError where there is nothing to read: no such file, not UTF-8, not YAML, a circle of `extends`.
    """
    return _read(path, (), environment=environment, shorthands=shorthands)


def override(
    source: Source, options: Sequence[str], *, environment: Mapping[str, str], shorthands: Mapping[str, str]
) -> Source:
    """Lay `key.sub=value` over `source`, in order; the value is read as YAML."""
    for option in options:
        source = _merge(source, _read_option(option, source, environment=environment, shorthands=shorthands))
    return source


def dotted(key: Key) -> str:
    """`gates.accuracy.max_drop`, `checkpoints.files[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is gathered while one file or option is walked."""

    found: Source
    where: Callable[[yaml.Node], str]
    environment: Mapping[str, str]

    def complain(self, node: yaml.Node, key: Key, text: str) -> None:
        self.found.problems.append(Problem(self.where(node), key, text))


def _read(
    path: Path, chain: tuple[Path, ...], *, environment: Mapping[str, str], shorthands: Mapping[str, str]
) -> Source:
    root = _compose(_text(path), str(path))
    if root is None:
        raise SoupError(f"{path}: is empty, expected keys such as 'model' and 'data'. `soup init` writes an example.")
    if not isinstance(root, yaml.MappingNode):
        raise SoupError(f"{path}: expected keys such as 'model' and 'data', got {_kind(root)}.")
    layer = _Layer(Source(places={(): str(path)}), lambda node: f"{path}:{node.start_mark.line + 1}", environment)
    layer.found.values.update(_mapping(_spelled_out(root, shorthands), (), layer))
    extends = layer.found.values.pop("extends", None)
    where = layer.found.place(("extends",))
    if extends is None or any(problem.key == ("extends",) for problem in layer.found.problems):
        return layer.found
    if not isinstance(extends, str):
        raise SoupError(f"{where}: extends: expected the path of another file, got {extends!r}.")
    parent, chain = path.parent / extends, (*chain, path)
    if not parent.is_file():
        raise SoupError(f"{where}: extends: no such file: '{parent}'. The path is relative to the file that names it.")
    if parent.resolve() in [earlier.resolve() for earlier in chain]:
        circle = " → ".join(str(step) for step in (*chain, parent))
        raise SoupError(f"{where}: extends: goes in a circle: {circle}. Remove one of them.")
    return _merge(_read(parent, chain, environment=environment, shorthands=shorthands), layer.found)


def _read_option(
    option: str, below: Source, *, environment: Mapping[str, str], shorthands: Mapping[str, str]
) -> Source:
    where = f"--set {option}"
    name, equals, text = option.partition("=")
    names = name.split(".")
    if not equals or not all(names):
        return Source(problems=[Problem(where, (), "expected key.sub=value, as in gates.accuracy.max_drop=0.01.")])
    node = _compose(text, where) or yaml.ScalarNode("tag:yaml.org,2002:str", "")
    for part in reversed(names):
        node = _around(part, node)
    assert isinstance(node, yaml.MappingNode)
    layer = _Layer(Source(), lambda _: where, environment)
    layer.found.values.update(_mapping(_spelled_out(node, shorthands), (), layer))
    # A section that the file has keeps the file's line: only what the option brings is the option's.
    places = {key: where for key in layer.found.places if len(key) >= len(names) or key not in below.places}
    return Source(layer.found.values, places, layer.found.problems)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise SoupError(f"{path}: is a folder, expected a file such as '{path / 'val.yaml'}'.") from error
    except FileNotFoundError as error:
        raise SoupError(f"{path}: no such file. `soup init RUNS_DIR` writes one.") from error
    except OSError as error:
        raise SoupError(f"{path}: cannot be read: {error.strerror or error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SoupError(f"{path}:{line}: not UTF-8 text. Save the file as UTF-8.") from error


def _compose(text: str, where: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except RecursionError as error:
        raise SoupError(f"{where}: nested too deeply.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and not where.startswith("--set") else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        hint = " Inside {…} and […], a ${…} needs quotes." if mark and "${" in _line(text, mark.line) else ""
        raise SoupError(f"{where}{line}: not YAML: {reason}.{hint}") from error


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number] if number < len(lines) else ""


def _spelled_out(root: yaml.MappingNode, shorthands: Mapping[str, str]) -> yaml.MappingNode:
    pairs = [
        (key, _around(shorthands[key.value], value))
        if isinstance(value, yaml.SequenceNode) and isinstance(key, yaml.ScalarNode) and key.value in shorthands
        else (key, value)
        for key, value in root.value
    ]
    return yaml.MappingNode(root.tag, pairs, root.start_mark, root.end_mark)


def _around(name: str, node: yaml.Node) -> yaml.MappingNode:
    key = yaml.ScalarNode("tag:yaml.org,2002:str", name, node.start_mark, node.end_mark)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)], node.start_mark, node.end_mark)


def _value(node: yaml.Node, key: Key, layer: _Layer) -> object:
    if len(key) > _DEEPEST:
        raise SoupError(f"{layer.where(node)}: nested more than {_DEEPEST} levels deep. Does an alias contain itself?")
    if node.tag not in _TAGS:
        layer.complain(node, key, f"the YAML tag '{node.tag}' is not read. Remove it.")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, layer)
    if isinstance(node, yaml.SequenceNode):
        layer.found.places.update({(*key, index): layer.where(item) for index, item in enumerate(node.value)})
        return [_value(item, (*key, index), layer) for index, item in enumerate(node.value)]
    return _scalar(node, key, layer)


def _mapping(node: yaml.MappingNode, key: Key, layer: _Layer) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            layer.complain(name, key, f"a key is {_kind(name)}, expected a word.")
            continue
        inner = (*key, name.value)
        if name.value in values:
            layer.complain(name, inner, f"is given twice, first at {layer.found.places[inner]}. Keep one.")
            continue
        layer.found.places[inner] = layer.where(name)
        values[name.value] = _value(value, inner, layer)
    return values


def _scalar(node: yaml.Node, key: Key, layer: _Layer) -> object:
    text = str(node.value)
    if "${" not in text:
        quoted = isinstance(node, yaml.ScalarNode) and node.style
        return text if quoted else _typed(text)

    def fill(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["escaped"]:
            return "${"
        if name is None:
            layer.complain(node, key, f"'{text}' has a ${{ that is neither ${{NAME}} nor ${{NAME:-default}} nor $${{.")
        elif name not in layer.environment and default is None:
            layer.complain(node, key, f"the environment has no '{name}'. Set it, or write ${{{name}:-default}}.")
        return layer.environment.get(name or "") or default or ""

    return _typed(_VARIABLE.sub(fill, text))


def _typed(text: str) -> str | int | float | bool | None:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _merge(below: Source, above: Source) -> Source:
    """`above` wins; what was wrong with a value that it replaces is wrong no longer."""
    replaced = _leaves(above.values, ())
    problems = [p for p in below.problems if not any(p.key[: len(key)] == key for key in replaced)]
    values = _merge_values(below.values, above.values)
    return Source(values, {**below.places, **above.places}, [*problems, *above.problems])


def _merge_values(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    merged = dict(below)
    for name, value in above.items():
        earlier = merged.get(name)
        if (
            isinstance(earlier, dict) and isinstance(value, dict) and value
        ):  # an empty one replaces: how else to clear it
            merged[name] = _merge_values(earlier, value)
        else:
            merged[name] = value
    return merged


def _leaves(values: Mapping[str, object], key: Key) -> list[Key]:
    inner = [((*key, name), value) for name, value in values.items()]
    return [leaf for at, value in inner for leaf in (_leaves(value, at) if isinstance(value, dict) else [at])]


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
