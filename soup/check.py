"""Before the build: may these checkpoints be averaged, do the data load, and does one score what its trainer reported."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from soup import SoupError
from soup.checkpoint import Checkpoint, load_state, read_checkpoint, with_names
from soup.config import Config
from soup.data import Split
from soup.evaluate import evaluate
from soup.gates import Exit
from soup.larder import Larder, Progress, find_overlaps, gather, load_data
from soup.models import load, select_device, tensor_table, torch_predict
from soup.pipeline import EVALUATION_BATCH, cache_folder
from soup.tasks import Metric, metric_named


@dataclass(frozen=True, slots=True)
class Attempt:
    """The checkpoint evaluated with one setting changed, and what it scored on val."""

    change: str
    value: float


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `soup check` tells. `attempts` are tried only where `expect` was missed, nearest to it first."""

    ingredients: int
    findings: tuple[str, ...]
    expected: float | None
    measured: float | None
    attempts: tuple[Attempt, ...]
    seconds_per_evaluation: float | None
    estimate: Mapping[str, float]
    lines: tuple[str, ...]
    exit_code: Exit
