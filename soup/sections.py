"""The sections of val.yaml as frozen records: every key, its default and its meaning stand here, and only here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError


def expects(what: str) -> WrapValidator:
    """One sentence for whatever is wrong with a value; a union would otherwise complain once per member."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("expects", "{what}", {"what": what}) from error

    return WrapValidator(check)


# Numbers are strict: `batch: true` and `max_drop: "0.5"` are refused instead of guessed at.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0)]
AtLeastZero = Annotated[Number, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Size = Annotated[Count | tuple[Count, Count], expects("pixels, or [height, width]")]
Spec = Annotated[
    str,
    Field(pattern=r"^([^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$"),
    expects("'./file.py:name' or 'package.module:name'"),
]
Dtype = Literal["float32", "float16", "int64", "int32", "uint8"]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True,
        protected_namespaces=(),  # `model_args` is the user's key; pydantic before 2.10 warns about it
    )  # fmt: skip


class Checkpoints(Section):
    """What is averaged. A bare list of globs is short for `files`."""

    files: tuple[Text, ...] = Field(min_length=1)
    """globs of the ingredients, relative to val.yaml"""
    use: Literal["auto", "raw", "ema"] = "auto"
    """which weights of a checkpoint that has both; one policy for all ingredients"""
    dtype: Literal["same", "float32", "float16", "bfloat16"] = "same"
    """floating-point type of soup.safetensors"""
    drop: tuple[Text, ...] = ()
    """patterns of tensor names that are left out, as in 'head.*'; the report lists what they matched"""
    base: Text | None = None
    """the checkpoint that all ingredients were fine-tuned from; wise_ft and model_stock need it"""
    order: Literal["recorded", "pilot"] = "recorded"
    """which ingredient is evaluated first: by the metric that its trainer recorded (pilot where there is none), or by a
    pilot on a few images; saves images and never changes the result"""
    on_bad_ingredient: Literal["fail", "skip"] = "fail"
    """whether an ingredient that is unreadable, or holds NaN or Inf, stops the build or is set aside and listed"""


class Expect(Section):
    """A figure that a trainer reported, for `soup check`."""

    checkpoint: Text
    """the checkpoint that it was reported for"""
    value: Number
    """the figure, in the metric's unit (0.883, not 88.3)"""
    tolerance: AtLeastZero = 0.003
    """the difference that is put down to rounding and library versions"""


class Cache(Section):
    """Where decoded images are kept between runs."""

    dir: Text | None = None
    """folder of decoded images; null is 'cache' in the output folder"""
    max_gb: Positive = 20
    """the most that decoded images may take on disk"""


class Files(Section):
    """Images and what is in them, where these lie apart."""

    images: Text
    """folder of the images"""
    annotations: Text | None = None
    """detection: folder of Pascal VOC .xml or YOLO .txt files, or a COCO .json; segmentation: a COCO .json"""
    masks: Text | None = None
    """segmentation: folder of masks (PNG), named as the images"""
    panoptic: Text | None = None
    """segmentation: folder of the PNG files of a COCO panoptic .json"""
    list: Text | None = None
    """text file that names the images of this split, one a line, as Pascal VOC's ImageSets/Main/val.txt"""


Where = Annotated[Text | Files, expects("a path, './file.py:name', or {images, annotations or masks}")]


class Data(Section):
    """Images with what is in them.

    Classification: a folder with one subfolder per class, labels.csv, an .npz. Detection: a Pascal VOC or YOLO folder,
    a COCO .json. Segmentation: a folder with images/ and masks/. Or {images, annotations or masks}, or a callable.
    """

    train: Where | None = None
    """BatchNorm recalibration draws from here; needed unless search.bn_policy is averaged"""
    val: Where
    """chooses the soup"""
    test: Where | None = None
    """judges the soup and is never used to choose; without it the report says that nothing did"""
    max_overlap: Annotated[Number, Field(ge=0, le=1)] = 0.001
    """the share of a split's images that may also be in another split"""
    near_duplicates: Flag = False
    """whether splits are also compared by perceptual hash; what is found is listed and stops nothing"""
    cache: Cache = Field(default_factory=Cache)
    """where decoded images are kept between runs"""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """whether an unreadable image stops the build or is skipped and counted"""


Byte = Annotated[Whole, Field(ge=0, le=255)]
Pad = Annotated[
    Byte | Annotated[tuple[Byte, ...], Field(min_length=1)], expects("0 to 255, or one such number per channel")
]


class Letterbox(Section):
    """Scale to fit, then fill."""

    size: Size
    """pixels, or [height, width], that the scaled image fits into; the result's own, unless there is a stride"""
    pad: Pad = 114
    """value that fills the rest, 0 to 255; one, or one per channel in the order of `color`"""
    centered: Flag = True
    """whether the rest is split between both sides or is all right and below"""
    stride: Count | None = None
    """the result is only as large as the scaled image, each side rounded up to a multiple of this; null fills `size`"""
    margin: Annotated[Whole, Field(ge=0)] = 0
    """pixels that each side is longer before it is rounded up to the stride"""
    shorter: Count | None = None
    """the most that the scaled image's shorter side may have"""
    scale_up: Flag = True
    """whether images smaller than `size` are enlarged"""
    rounding: Literal["nearest", "half_up", "floor", "ceil", "detr"] = "nearest"
    """how scaled sides become whole pixels; docs/recipes.md tells which trainer has which"""

    @model_validator(mode="after")
    def _margin_has_a_stride(self) -> Letterbox:
        if self.margin and self.stride is None:
            raise ValueError("margin is added before rounding up to a stride, which is not given. Give stride too")
        return self


class Sweep(Section):
    """Test resolutions at which a build measures its winner, too."""

    scales: tuple[Annotated[Number, Field(ge=0.25, le=4)], ...] = Field(
        default=(0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4), min_length=1
    )
    """what resize, crop or letterbox are multiplied by"""
    crop_ratios: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = ()
    """crop over the resized shorter side, each tried at every scale beside the one that is given"""


class Preprocess(Section):
    """From an image to what the model sees, in this order: letterbox or resize and crop, colour, mean and std."""

    resize: Size | None = None
    """pixels of the shorter side, or exactly [height, width]"""
    crop: Size | None = None
    """pixels, or [height, width], cut from the centre"""
    letterbox: Letterbox | None = None
    """scale to fit and fill, instead of resize and crop"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "area"] = "bilinear"
    """how pixels are resampled"""
    backend: Literal["pil", "cv2"] = "pil"
    """the library that decodes and resizes, as in training: their pixels differ"""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """channel order that the model expects"""
    mean: tuple[Number, ...] = (0.0,)
    """subtracted from pixels scaled to 0..1; one value, or one per channel"""
    std: tuple[Positive, ...] = (1.0,)
    """divides what is left; one value, or one per channel"""
    sweep: Sweep | None = None
    """other test resolutions to measure the winner at; export takes one with --resolution"""

    @property
    def facts(self) -> dict[str, JsonValue]:
        """What an image goes through, as JSON: what a device has to do, too."""
        return self.model_dump(mode="json", exclude={"sweep"})

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = {"rgb": 3, "bgr": 3, "gray": 1}.get(info.data.get("color", ""), len(values))
        if len(values) not in (1, channels):
            raise ValueError(f"has {len(values)} values, expected 1 or one per channel ({channels})")
        return values

    @model_validator(mode="after")
    def _one_geometry(self) -> Preprocess:
        if self.letterbox and (self.resize or self.crop):
            raise ValueError("letterbox stands instead of resize and crop. Remove one or the other")
        if self.sweep and not (self.resize or self.crop or self.letterbox):
            raise ValueError("sweep scales resize, crop or letterbox, and none is given. Give one")
        values, channels = self.letterbox and self.letterbox.pad, 1 if self.color == "gray" else 3
        if isinstance(values, tuple) and len(values) not in (1, channels):
            raise ValueError(f"letterbox.pad has {len(values)} values, expected 1 or one per channel ({channels})")
        return self


class Batchnorm(Section):
    """BatchNorm recalibration."""

    samples: Count = 1000
    """training images that the statistics are measured on; under about 250 it does harm"""
    batch: Count = 100
    """images per forward pass; part of the recipe, since deeper statistics depend on it"""


class Golden(Section):
    """Samples that travel with the release, so that the device can verify it."""

    count: Annotated[Count | Literal["all"], expects("a whole number from 1, or 'all'")] = 64
    """how many, or all"""
    split: Literal["val", "test"] = Field(default="val", alias="from")
    """the split that they are taken from"""


class Release(Section):
    """The release folder."""

    golden: Golden = Field(default_factory=Golden)
    """samples that travel with the release"""
