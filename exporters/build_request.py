"""What the building process is asked for: a frozen record, and the line of JSON that carries it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from exporters.engine_settings import EngineSettings, settings_facts, settings_from
from exporters.flavours import Flavour
from exporters.profiles import Bounds


@dataclass(frozen=True, slots=True)
class Request:
    """What to build; JSON on the way in. `profiles` is empty for a static graph; `parent` is the pid to die with."""

    onnx_path: str
    engine_path: str
    layers_path: str
    flavour: Flavour
    profiles: tuple[dict[str, Bounds], ...] = ()
    settings: EngineSettings = field(default_factory=EngineSettings)
    has_gpu: bool = False
    parent: int | None = None

    @property
    def partial_paths(self) -> tuple[Path, ...]:
        """Where files lie until they are whole."""
        cache = [str(self.settings.timing_cache)] if self.settings.timing_cache else []
        return tuple(partial(Path(path)) for path in (self.engine_path, self.layers_path, *cache))

    def to_json(self) -> str:
        """One line."""
        facts = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(facts | {"settings": settings_facts(self.settings)})


def read_request(line: str) -> Request:
    """The inverse of `Request.to_json`."""
    facts = json.loads(line)
    settings = settings_from(facts.pop("settings"))
    profiles = tuple(
        {name: (tuple(bounds[0]), tuple(bounds[1]), tuple(bounds[2])) for name, bounds in shapes.items()}
        for shapes in facts.pop("profiles")
    )
    return Request(**facts, profiles=profiles, settings=settings)


def partial(path: Path) -> Path:
    """The name of a file until it is whole, in the same folder."""
    return path.with_name(f".{path.name}.partial")
