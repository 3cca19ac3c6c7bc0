"""Which layers run on a DLA and which fell back to the GPU, by the builder's log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Two lists in the builder's log, a line per layer; on a DLA a subgraph is one line,
# "[DlaLayer] {ForeignNode[first...last]}", on the GPU fused layers are joined by " + ". Seen in logs that
# users published, with and without the type before the name; the form is not documented: anything else is "unknown".
_LINE = re.compile(r"\[(?P<where>Dla|Gpu)Layer\] (?:[A-Z_]+: )?(?P<name>.+)")
_FOREIGN = re.compile(r"\{ForeignNode\[(?P<names>.+)\]\}")
_HEADING = "Layers Running on DLA"


@dataclass(frozen=True, slots=True)
class Placement:
    """Layers of the network, before fusion, by where they run; those that the log does not name are in neither."""

    dla: tuple[str, ...]
    gpu: tuple[str, ...]

    @property
    def share(self) -> float:
        """Layers on the DLA over all that were placed; 0 where none was."""
        placed = len(self.dla) + len(self.gpu)
        return len(self.dla) / placed if placed else 0.0


def placement(messages: Iterable[str], layers: Sequence[str]) -> Placement | None:
    """Where each of `layers` (names in the network's order) runs; None where the log does not tell.

    A DLA's subgraph is told by its first and last layer: what lies between them in the network and is not on the GPU is
    counted in.
    """
    lines = [line for message in messages for line in message.splitlines()]
    if not any(_HEADING in line for line in lines):
        return None
    found = [match for line in lines if (match := _LINE.search(line))]
    pieces = {piece for match in found if match["where"] == "Gpu" for piece in _pieces(match["name"])}
    gpu = {name for name in layers if name in pieces}
    dla: set[str] = set()
    for match in found:
        if match["where"] == "Dla":
            dla |= _between(match["name"].strip(), layers) - gpu
    return Placement(
        dla=tuple(name for name in layers if name in dla), gpu=tuple(name for name in layers if name in gpu)
    )


def _pieces(fused: str) -> set[str]:
    """The names in "a + PWN(b, c)"; a name that itself holds such marks is found only where it stands alone."""
    return {fused.strip(), *re.split(r" \+ |PWN\(|\)|, | \|\| ", fused.strip())} - {""}


def _between(name: str, layers: Sequence[str]) -> set[str]:
    foreign = _FOREIGN.fullmatch(name)
    if foreign is None:
        return {name} & set(layers)
    first, separator, last = foreign["names"].partition("...")
    if not separator:
        return {first} & set(layers)
    if first not in layers or last not in layers:
        return {first, last} & set(layers)
    begin, end = sorted((layers.index(first), layers.index(last)))
    return set(layers[begin : end + 1])
