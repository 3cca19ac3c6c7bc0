"""The sections of val.yaml as frozen records: every key, its default and its meaning stand here, and only here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
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


class Data(Section):
    """Images with their labels: a folder with one subfolder per class, labels.csv, an .npz, or a callable."""

    train: Text | None = None
    """BatchNorm recalibration draws from here; needed unless search.bn_policy is averaged"""
    val: Text
    """chooses the soup"""
    test: Text | None = None
    """judges the soup and is never used to choose; without it the report says that nothing did"""
    max_overlap: Annotated[Number, Field(ge=0, le=1)] = 0.001
    """the share of a split's images that may also be in another split"""
    near_duplicates: Flag = False
    """whether splits are also compared by perceptual hash; what is found is listed and stops nothing"""
    cache: Cache = Field(default_factory=Cache)
    """where decoded images are kept between runs"""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """whether an unreadable image stops the build or is skipped and counted"""


class Letterbox(Section):
    """Scale to fit, then fill."""

    size: Size
    """pixels, or [height, width], of the result"""
    pad: Annotated[Whole, Field(ge=0, le=255)] = 114
    """value that fills the rest, 0 to 255"""
    centered: Flag = True
    """whether the rest is split between both sides or is all right and below"""


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
