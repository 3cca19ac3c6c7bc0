"""What val.yaml says of a task: how outputs become answers, and how these are scored, as frozen records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from soup.sections import AtLeastZero, Count, Flag, Number, Positive, Section, Text, Whole, expects

AtLeastWhole = Annotated[Whole, Field(ge=0, le=255)]
Share = Annotated[Number, Field(ge=0, le=1)]
ADAPTERS = ("torchvision", "centernet", "yolo", "detr", "none")
Adapter = Annotated[
    str,
    Field(pattern=rf"^({'|'.join(ADAPTERS)}|([^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*)$"),
    expects(f"one of {', '.join(ADAPTERS)}, or './file.py:name' or 'package.module:name'"),
]


def _distinct(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names and (twice := [name for name, count in Counter(names).items() if count > 1]):
        raise ValueError(f"'{twice[0]}' is there more than once, expected a name of its own for each score. Rename one")
    return names


ClassNames = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_distinct)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$"), expects("a colour as '#ff0000'")]


class Suppression(Section):
    """How the boxes of one image are thinned out, after the network."""

    method: Literal["nms", "soft_linear", "soft_gaussian", "weighted_fusion", "none"] = "nms"
    """nms drops what overlaps a better box, soft_* lower its score, weighted_fusion averages what overlaps"""
    iou: Share = 0.5
    """overlap (intersection over union) above which two boxes are one object"""
    score: Share = 0.05
    """boxes of a lower score are dropped; evaluate with a low one, as mAP needs the tail"""
    max_detections: Count = 100
    """the most boxes of one image that are kept"""
    candidates: Count = 1000
    """the most boxes of one image that are looked at, those of the highest score"""
    class_agnostic: Flag = False
    """whether a box suppresses those of other classes, too"""
    sigma: Positive = 0.5
    """width of soft_gaussian"""
    voting_iou: Share | None = None
    """box voting: a kept box becomes the score-weighted mean of all that overlap it by so much; null leaves it"""


class Fusion(Section):
    """How the report fuses boxes, of the soup's ingredients or of several views: a reference, not what ships."""

    method: Literal["weighted", "union", "intersection"] = "weighted"
    """how the boxes of several views of an image become one list; of several ingredients all three are told"""
    iou: Share | None = None
    """overlap above which boxes of several models or views are one object; null takes that of suppression"""
    votes: Count | None = None
    """so many must find a box: of ingredients told beside the three, of views what decides; null leaves it to them"""
    score: Share = 0.0
    """fused boxes of a lower score are dropped"""


class Detection(Section):
    """How a network's outputs become boxes."""

    adapter: Adapter | None = None
    """what decodes the outputs, into boxes and scores; null takes torchvision's own heads"""
    adapter_args: Mapping[str, JsonValue] = Field(default_factory=dict)
    """keyword arguments of the adapter"""
    classes: ClassNames | None = None
    """class names in the order of the network's scores; null takes the data's order"""
    suppression: Suppression = Field(default_factory=Suppression)
    """how boxes are thinned out"""
    fusion: Fusion = Field(default_factory=Fusion)
    """how the boxes of several models become one list, as a reference"""


class Segmentation(Section):
    """How a network's outputs become masks."""

    output: Text = "out"
    """which of several outputs holds the class scores; auxiliary ones are not exported"""
    classes: ClassNames | None = None
    """class names in the order of the network's scores; null numbers them"""
    ignore_index: Annotated[Whole, Field(ge=0, le=255)] = 255
    """pixels of this class in a mask count for nothing"""
    palette: Annotated[Mapping[Colour, AtLeastWhole], Field(min_length=1)] | None = None
    """the class of each colour, as {"#ff0000": 1}, where masks are colour images"""
    score_at: Literal["image", "input"] = "image"
    """masks are compared at the image's own size, or at the size that the network takes"""


class Classification(Section):
    """How class scores are read."""

    multilabel: Flag = False
    """whether an image may have several classes or none; labels.csv then has a column `labels`"""
    classes: ClassNames | None = None
    """class names in the order of the network's scores, of several labels; null takes those of data.val, sorted"""
    threshold: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """probability above which a label of several is given"""
    class_weights: Mapping[Text, AtLeastZero] | tuple[AtLeastZero, ...] | None = None
    """weight of each class for weighted_accuracy, by name or in the order of the classes"""
    bins: Count = 15
    """bins of the probability for ece"""
