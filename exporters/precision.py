"""The precisions that a graph can have, as val.yaml, the files and the reports name them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp16", "int8"]
