"""A recipe cooked again, without a search: the same checkpoints and images give the same file, or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from soup import Progress, SoupError
from soup.build_folder import BUILD, RECIPE, SCHEMA_VERSION, SOUP, claim_folder, first_complaint
from soup.checkpoint import state_sha256
from soup.config import Config
from soup.files import staged
from soup.larder import Larder, gather, load_data
from soup.lock import locked
from soup.pipeline import cache_folder, open_kitchen
from soup.score import Kitchen, Policy
from soup.serving import write_soup


@dataclass(frozen=True, slots=True)
class Batchnorm:
    """Where the soup's BatchNorm statistics come from; the images and the batch where they were recalibrated."""

    policy: Policy
    samples: int | None = None
    samples_sha256: str | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What of recipe.json it takes to cook; the rest of it tells how it was found."""

    schema_version: int
    weights: Mapping[str, float | Mapping[str, float]]  # by SHA-256
    use: Literal["raw", "ema"]
    dtype: Literal["same", "float32", "float16", "bfloat16"]
    bn: Batchnorm
    state_sha256: str
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Recooked:
    """The folder with soup.safetensors and recipe.json, the checkpoints averaged, and the content hash they gave."""

    folder: Path
    ingredients: tuple[Path, ...]
    state_sha256: str


def recook(config: Config, file: Path, out: Path, *, progress: Progress) -> Recooked:
    """Cook the recipe in `file` from the checkpoints and images of val.yaml; nothing is searched or evaluated.

    Writes soup.safetensors and recipe.json with the bytes that the build gave them. Raises SoupError where a checkpoint
    is missing, the recalibration images are others, or the result differs; nothing is written then.
    """
    claim_folder(out)
    with locked(out, "soup build --recipe"):
        if (out / BUILD).exists():
            raise SoupError(f"{out}: holds a build, which is not cooked over. Choose an empty or a new folder with -o.")
        content, recipe = _read(file)
        config = _with_settings(config, recipe)
        tuned = recipe.weights.keys() - {recipe.base}
        larder = gather(config, exclude=out, only=tuned, progress=progress)
        _refuse_other_base(larder, recipe)
        splits = load_data(config, ("train", "val", "test"), cache=cache_folder(config, out), progress=progress)
        kitchen = open_kitchen(config, larder, splits, progress=progress)
        _refuse_other_images(kitchen, recipe)
        measured = kitchen.prepare(recipe.weights, recipe.bn.policy)
        state = kitchen.state()
        _refuse_other_state(file, recipe, cooked=state_sha256(state))
        with staged(out, last=RECIPE) as stage:
            write_soup(stage / SOUP, kitchen, recipe.weights, state=state, measured=measured)
            (stage / RECIPE).write_bytes(content)
    return Recooked(out, tuple(one.path for one in larder.ingredients.values()), recipe.state_sha256)


def _read(file: Path) -> tuple[bytes, Recipe]:
    try:
        content = file.read_bytes()
        recipe = TypeAdapter(Recipe).validate_json(content)
    except OSError as error:
        raise SoupError(f"{file}: cannot be read: {error.strerror}. Name the recipe.json of a build.") from error
    except ValidationError as error:
        raise SoupError(f"{file}: {first_complaint(error)}. Name the recipe.json of a build.") from error
    if recipe.schema_version > SCHEMA_VERSION:
        raise SoupError(f"{file}: schema_version {recipe.schema_version}, expected {SCHEMA_VERSION}. Upgrade edgesoup.")
    return content, recipe


def _with_settings(config: Config, recipe: Recipe) -> Config:
    """val.yaml with what the recipe pins laid over it."""
    pinned = {"samples": recipe.bn.samples, "batch": recipe.bn.batch} if recipe.bn.samples else {}
    return config.model_copy(
        update={
            "checkpoints": config.checkpoints.model_copy(update={"use": recipe.use, "dtype": recipe.dtype}),
            "batchnorm": config.batchnorm.model_copy(update=pinned),
        }
    )


def _refuse_other_base(larder: Larder, recipe: Recipe) -> None:
    found = larder.base.sha256 if larder.base else "none"
    if recipe.base in recipe.weights and found != recipe.base:
        raise SoupError(
            f"checkpoints.base: the SHA-256 is {found}, expected {recipe.base} as in the recipe. Restore the file."
        )


def _refuse_other_images(kitchen: Kitchen, recipe: Recipe) -> None:
    drawn = kitchen.calibration.list_sha256 if kitchen.calibration else "none"
    if recipe.bn.policy == "recalibrated" and drawn != recipe.bn.samples_sha256:
        raise SoupError(
            f"data.train: the images to recalibrate BatchNorm on have the list SHA-256 {drawn}, expected "
            f"{recipe.bn.samples_sha256} as in the recipe. Restore train, and val and test, whose images are left out."
        )


def _refuse_other_state(file: Path, recipe: Recipe, *, cooked: str) -> None:
    if cooked == recipe.state_sha256:
        return
    found = f"the state SHA-256 is {cooked}, expected {recipe.state_sha256}"
    if recipe.bn.policy != "recalibrated":
        raise SoupError(f"{file}: the weights differ: {found}. Restore the recipe as the build wrote it.")
    raise SoupError(
        f"{file}: recalibrated statistics differ: {found}. Their bits are the same only on the machine, and with the "
        "versions and threads, that built the soup; elsewhere take the build's soup.safetensors.",
        kind="environment",
    )
