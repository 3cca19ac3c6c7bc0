"""val.yaml, loaded: what the sections say together, and every problem of a file told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, PrivateAttr, ValidationError, ValidationInfo, field_validator

from soup import SoupError
from soup.config_errors import problems_of
from soup.export_sections import Export, Quantization
from soup.gate_sections import Gates
from soup.metric_names import OWN_METRIC, Task, is_name, names_of
from soup.search_sections import Explain, Search
from soup.sections import (
    Batchnorm,
    Checkpoints,
    Data,
    Expect,
    Preprocess,
    Release,
    Section,
    expects,
)
from soup.task_sections import Classification, Detection, Segmentation
from soup.yaml_source import Problem, Source, override, read_source

MOST_CANDIDATES = 3840
_SHORTHANDS = {"checkpoints": "files"}  # a bare list of globs is fine too
_AFTER_BUILD = ("gates", "export", "quantization", "release")  # where an export may differ from its build

ModelSpec = Annotated[
    str,
    Field(pattern=r"^([^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.\-]*$"),
    expects("'./models.py:build', 'package.module:callable', 'torchvision:name' or 'timm:name'"),
]


class Config(Section):
    """Everything that val.yaml can say."""

    model: ModelSpec
    """what builds the network: a file beside val.yaml, an installed package, or a library's name"""
    model_args: Mapping[str, JsonValue] = Field(default_factory=dict)
    """keyword arguments of that callable"""
    checkpoints: Checkpoints
    """what is averaged; a bare list of globs is fine too"""
    expect: Expect | None = None
    """a figure that a trainer reported, for `soup check`"""
    task: Annotated[Task, expects("'classification', 'detection' or 'segmentation'")] = "classification"
    """what the model does"""
    classification: Classification = Field(default_factory=Classification)
    """how class scores are read"""
    detection: Detection = Field(default_factory=Detection)
    """how a network's outputs become boxes"""
    segmentation: Segmentation = Field(default_factory=Segmentation)
    """how a network's outputs become masks"""
    data: Data
    """images with their labels"""
    preprocess: Preprocess | None = None
    """from an image to what the model sees; null where the data are float tensors already"""
    metric: str = ""
    """what is compared, as accuracy, map or miou, which an empty one means; or './file.py:name' of your own"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), expects("auto, cpu, cuda or cuda:0")] = "auto"
    """where torch runs"""
    search: Search = Field(default_factory=Search)
    """how the ingredients are chosen"""
    explain: Explain = Field(default_factory=Explain)
    """what the report tells beyond the search"""
    batchnorm: Batchnorm = Field(default_factory=Batchnorm)
    """BatchNorm recalibration"""
    quantization: Quantization = Field(default_factory=Quantization)
    """how INT8 is made"""
    export: Export = Field(default_factory=Export)
    """the ONNX file and what is built from it"""
    release: Release = Field(default_factory=Release)
    """the release folder"""
    gates: Gates = Field(default_factory=Gates)
    """what must hold before a release may ship"""

    _folder: Path = PrivateAttr(Path())

    @field_validator("metric")
    @classmethod
    def _metric_of_the_task(cls, metric: str, info: ValidationInfo) -> str:
        task = info.data.get("task")
        if task is None:
            return metric
        multilabel = task == "classification" and (section := info.data.get("classification")) and section.multilabel
        if metric == "weighted_accuracy" and info.data["classification"].class_weights is None:
            raise ValueError("weighted_accuracy needs classification.class_weights, which are not given. Give them")
        metric = metric or (names_of(task, multilabel=bool(multilabel))[0])
        if re.fullmatch(OWN_METRIC, metric) or is_name(metric, task=task, multilabel=bool(multilabel)):
            return metric
        known = ", ".join(names_of(task, multilabel=bool(multilabel)))
        raise ValueError(f"'{metric}' is not known for {task}. Expected one of {known}, or your own './file.py:name'")

    @field_validator("search")
    @classmethod
    def _methods_have_what_they_need(cls, search: Search, info: ValidationInfo) -> Search:
        data = info.data.get("data")
        if search.bn_policy == "recalibrated" and data and data.train is None:
            raise ValueError(
                "BatchNorm is recalibrated on data.train, which is not given. "
                "Give it, or set search.bn_policy: averaged (also for a model without BatchNorm)"
            )
        if search.precision == "int8" and data and data.train is None:
            raise ValueError("INT8 ranges are measured on data.train, which is not given. Give it, or score in fp16")
        task = info.data.get("task")
        gradient = sorted({"learned", "learned_layers"} & set(search.methods))
        several = "classification" in info.data and info.data["classification"].multilabel
        if gradient and (several or task in ("detection", "segmentation")):
            what = "several labels are set" if several else f"the task is {task}"
            raise ValueError(f"'{gradient[0]}' learns from one label per image, and {what}. Leave it out")
        if "ranked" in search.methods and task == "detection":
            raise ValueError("'ranked' averages class scores, and the task is detection. Leave it out")
        checkpoints = info.data.get("checkpoints")
        needing = sorted({"wise_ft", "model_stock"} & set(search.methods))
        if needing and checkpoints and checkpoints.base is None:
            raise ValueError(f"'{needing[0]}' starts from checkpoints.base, which is not given. Give it too")
        return search

    @field_validator("export")
    @classmethod
    def _nms_is_for_boxes(cls, export: Export, info: ValidationInfo) -> Export:
        detection = info.data.get("detection")
        if export.nms == "none" or detection is None:
            return export
        if info.data.get("task") != "detection":
            raise ValueError(f"export.nms is {export.nms}, and the task is {info.data.get('task')}. Leave it out")
        rules = detection.suppression
        if export.nms == "onnx" and rules.candidates > MOST_CANDIDATES:
            raise ValueError(
                f"export.nms: onnx looks at {MOST_CANDIDATES} candidates at most, where TensorRT's TopK ends, and "
                f"detection.suppression at {rules.candidates}. Lower it"
            )
        if rules.method != "nms" or rules.voting_iou is not None:
            raise ValueError(
                f"export.nms: {export.nms} does plain NMS, and detection.suppression asks for "
                f"{rules.method if rules.method != 'nms' else 'box voting'}. Use one and the same"
            )
        return export

    @field_validator("release")
    @classmethod
    def _golden_samples_have_a_split(cls, release: Release, info: ValidationInfo) -> Release:
        data = info.data.get("data")
        if release.golden.split == "test" and data and data.test is None:
            raise ValueError("golden.from is test, but data.test is not given. Give it, or take them from val")
        return release

    @property
    def folder(self) -> Path:
        """The folder of val.yaml, which relative paths start from (those of an extended file too)."""
        return self._folder

    def resolve(self, path: str) -> Path:
        """A path as written in val.yaml, from `folder`; `~` is the user's home."""
        return self._folder / Path(path).expanduser()


def load_config(path: Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """Read val.yaml with what it extends, lay `key.sub=value` over it, fill in `${VAR}` and validate.

    Raises SoupError with every problem at once, one a line: `val.yaml:12: gates.accuracy.max_drop: expected …`.
    """
    environment = os.environ if environment is None else environment
    source = read_source(path, environment=environment, shorthands=_SHORTHANDS)
    source = override(source, overrides, environment=environment, shorthands=_SHORTHANDS)
    return _validated(source, folder=path.parent)


def apply_overrides(
    values: Mapping[str, object],
    overrides: Sequence[str],
    *,
    folder: Path,
    allowed: Sequence[str] = _AFTER_BUILD,
    origin: str = "build.json",
) -> Config:
    """The Config of a build (`values` as `resolved` gave them), changed only below the keys in `allowed`.

    Raises SoupError for any other key: the weights would no longer be those that were built and judged.
    """
    fixed = [option for option in overrides if option.partition("=")[0].split(".")[0] not in allowed]
    if fixed:
        advice = f"the build has fixed it; only {', '.join(allowed)} may differ. Change val.yaml and build again."
        raise SoupError("\n".join(f"--set {option}: {advice}" for option in fixed))
    source = Source(dict(values), {(): origin})
    return _validated(override(source, overrides, environment=os.environ, shorthands=_SHORTHANDS), folder=folder)


def resolved(config: Config) -> dict[str, object]:
    """All values, defaults included, as JSON has them; paths as written, so that no local folder leaks."""
    return config.model_dump(mode="json", by_alias=True)


def schema() -> dict[str, object]:
    """The JSON Schema of val.yaml, for editors (docs/schemas/val.schema.json); `${VAR}` fits text only."""
    document = Config.model_json_schema()
    properties = document["properties"]
    globs = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
    meaning = properties["checkpoints"]["description"]
    properties["checkpoints"] = {"anyOf": [{"$ref": "#/$defs/Checkpoints"}, globs], "description": meaning}
    properties["extends"] = {"type": "string", "description": "another file that this one lies over, relative to it"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document, "title": "val.yaml"}


def _validated(source: Source, *, folder: Path) -> Config:
    try:
        config = Config.model_validate(source.values)
    except ValidationError as error:
        raise _refused([*source.problems, *problems_of(error, Config, source=source)]) from error
    if source.problems:
        raise _refused(source.problems)
    config._folder = folder
    return config


def _refused(problems: Sequence[Problem]) -> SoupError:
    return SoupError("\n".join(str(problem) for problem in problems))
