"""`make segmentation`: train a small U-Net, then soup check, build, export --trt and verify; a page with pictures."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from data import read  # makes the detection example's modules known
from report import write_segmentation
from steps import released, trained

HERE, OUT = Path(__file__).parent, Path("segmentation-out")
PICTURES = 6


def main() -> None:
    """Everything lands in segmentation-out/; ends with the first command's exit code that is not 0."""
    started = time.monotonic()
    OUT.mkdir(exist_ok=True)
    shutil.copy(HERE / "models.py", OUT / "models.py")
    figure = trained(OUT, HERE / "train.py", *sys.argv[1:])
    last = sorted((OUT / "checkpoints").glob("*.pt"))[-1].name
    expect = f"expect: {{checkpoint: checkpoints/{last}, value: {figure}, tolerance: 0.0005}}\n"
    (OUT / "val.yaml").write_text((HERE / "val.yaml").read_text() + expect)
    released(OUT)
    images, masks = read(OUT / "data", "test")
    print(f"\n{write_segmentation(OUT, images[:PICTURES], masks[:PICTURES])}")
    print(f"done in {time.monotonic() - started:.0f} s: open {OUT}/report.html")


if __name__ == "__main__":
    main()
