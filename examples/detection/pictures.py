"""Pictures for a report: images with boxes, or with masks over them, several models' beside the truth, as SVG."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# boxes float (n, 4), x1 y1 x2 y2 in the image's pixels; labels int (n); scores (n), None for the truth
Boxes: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray | None]"
_WIDTH = 2.6  # inches of an image
_MASK = 0.75  # opacity
_PLATE = {"alpha": 0.7, "edgecolor": "none", "pad": 0.5}  # behind a class's name


def with_boxes(
    images: Sequence[np.ndarray], columns: Mapping[str, Sequence[Boxes]], *, classes: Sequence[str]
) -> bytes:
    """An SVG with a row for each image uint8 (h, w, 3) and a column for each of `columns`: title → boxes per image."""

    def draw(axes: Axes, found: Boxes) -> None:
        from matplotlib.patches import Rectangle

        boxes, labels, scores = found
        for number, ((x1, y1, x2, y2), label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            colour = _colour(label)
            axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour))
            text = classes[label] if scores is None else f"{classes[label]} {scores[number]:.2f}"
            axes.text(
                x1,
                y1 - 1,
                text,
                color="black",
                fontsize=5,
                va="bottom",
                clip_on=True,
                bbox={**_PLATE, "facecolor": colour},
            )

    return _table(images, columns, draw)


def with_masks(images: Sequence[np.ndarray], columns: Mapping[str, Sequence[np.ndarray]], *, ignored: int) -> bytes:
    """The same with masks uint8 (h, w) of class ids: 0 is see-through, `ignored` pixels are grey."""

    def draw(axes: Axes, mask: np.ndarray) -> None:
        paint = np.zeros((*mask.shape, 4), np.float32)
        for label in np.unique(mask[mask > 0]).tolist():
            rgb = (0.5, 0.5, 0.5) if label == ignored else _colour(label - 1)
            paint[mask == label] = (*rgb, _MASK)
        axes.imshow(paint, interpolation="nearest")

    return _table(images, columns, draw)


def _table(
    images: Sequence[np.ndarray], columns: Mapping[str, Sequence], draw: Callable[[Axes, object], None]
) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    height, width = images[0].shape[:2]
    size = (_WIDTH * len(columns), _WIDTH * height / width * len(images) + 0.3)
    with matplotlib.rc_context({"svg.hashsalt": "pictures"}):  # equal pictures are equal bytes
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(images), len(columns), squeeze=False)
        for row, image in zip(grid, images, strict=True):
            for axes in row:
                axes.imshow(image, interpolation="nearest")
                axes.set_axis_off()
        for column, (title, entries) in enumerate(columns.items()):
            grid[0, column].set_title(title, fontsize=9)
            for axes, entry in zip(grid[:, column], entries, strict=True):
                draw(axes, entry)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None}, dpi=100)
    return target.getvalue()


def _colour(label: int) -> tuple[float, ...]:
    return colorsys.hsv_to_rgb(label * 0.618 % 1, 0.7, 1)  # the golden ratio: neighbours differ, however many there are
