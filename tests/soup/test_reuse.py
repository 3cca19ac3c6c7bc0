"""What a build takes from the ledger of an earlier one: all that is still true, and nothing that a change undid."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from soup.pipeline import BuildResult

Build = Callable[..., BuildResult]
VAL, TEST = 150, 130  # images
LABELS = "labels"
PLAIN = "explain: {contributions: false, ensemble: false, line: 0}\n"


@dataclass(frozen=True)
class Again:
    """A project beside the ledger of its first build; `build` builds it again."""

    project: Path
    out: Path
    first: BuildResult
    build_at: Build

    def build(self, *overrides: str) -> BuildResult:
        with as_in_a_new_process():
            return self.build_at(self.project, self.out, *overrides)


@contextlib.contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """models.py, and what it imports, is imported anew, from the folder that it lies in."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in sys.modules.keys() - modules:
            if name == "widths" or name.startswith("soup_user_"):
                del sys.modules[name]


@pytest.fixture(scope="module")
def first(slim: Path, build_at: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult]:
    folder = tmp_path_factory.mktemp("first")
    project = Path(shutil.copytree(slim, folder / "project"))
    (project / "widths.py").write_text("WIDTH = 8\n")
    models = (project / "models.py").read_text()
    (project / "models.py").write_text(f"from widths import WIDTH\n{models.replace('width=8', 'width=WIDTH')}")
    with (project / "val.yaml").open("a") as file:
        file.write(PLAIN)
    with as_in_a_new_process():
        return folder, build_at(project, folder / "out")


@pytest.fixture
def again(first: tuple[Path, BuildResult], build_at: Build, tmp_path: Path) -> Again:
    """The project and its build folder, copied elsewhere: where they lie matters to nothing."""
    folder = Path(shutil.copytree(first[0], tmp_path / "again"))
    return Again(folder / "project", folder / "out", first[1], build_at)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def forwarded(result: BuildResult) -> dict[str, int]:
    """By purpose; only what was forwarded at all."""
    return {phase: images for phase, images in result.record.cost.forwarded.items() if images}


def reasons(result: BuildResult) -> set[str]:
    return {line.partition(": ")[2] for line in result.not_reused}


def change(path: Path, edit: Callable[[Mapping[str, np.ndarray]], None]) -> None:
    with np.load(path) as stored:
        arrays = {name: array.copy() for name, array in stored.items()}
    edit(arrays)
    np.savez(path, **arrays)


def one_pixel(arrays: Mapping[str, np.ndarray]) -> None:
    arrays["images"][0, 0, 0] ^= 1


def one_label(arrays: Mapping[str, np.ndarray]) -> None:
    arrays[LABELS][0] = (arrays[LABELS][0] + 1) % 10


def same_files(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("soup.safetensors", "recipe.json"))


# ---- nothing changed


def test_the_same_build_again_forwards_nothing_and_gives_the_same_bytes(again: Again) -> None:
    result = again.build()
    assert forwarded(again.first)["singles"] == 3 * VAL
    assert (forwarded(result), result.not_reused) == ({}, ())
    assert same_files(result.folder, again.first.folder)
    assert result.record.cost.reused["singles"] == 3 * VAL


def test_a_second_report_with_all_explanations_forwards_nothing_for_them(again: Again) -> None:
    explained = again.build("explain={}")
    assert forwarded(explained).keys() == {"explaining"}
    assert forwarded(again.build("explain={}")) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        ("gates={accuracy: {max_drop: 0.3}, gain: {min: 0.5}}",), ("export={batch: 8, opset: 17}",),
        ("release.golden.count=7",),
        ("data.near_duplicates=true", "data.max_overlap=1"),
    ],
)  # fmt: skip
def test_what_no_evaluation_depends_on_invalidates_nothing(again: Again, overrides: tuple[str, ...]) -> None:
    result = again.build(*overrides)
    assert (forwarded(result), result.not_reused) == ({}, ())


def test_fewer_methods_find_all_that_they_ask_for(again: Again) -> None:
    result = again.build("search.methods=[uniform]")
    assert result.not_reused == ()
    assert not forwarded(result).keys() - {"trying backends"}  # worth it or not, now that the search is shorter


def test_a_comment_in_val_yaml_invalidates_nothing(again: Again) -> None:
    path = again.project / "val.yaml"
    path.write_text(f"# of Tuesday\n{path.read_text()}")
    assert forwarded(again.build()) == {}


# ---- what is new, and only that


def test_one_more_checkpoint_asks_for_what_it_takes_part_in_and_for_nothing_else(again: Again, trained: Path) -> None:
    shutil.copy(trained / "runs/epoch-4.pt", again.project / "runs")
    result = again.build()
    assert forwarded(result)["singles"] <= VAL
    assert [line for line in result.not_reused if "(own, val)" in line] == ["epoch-4.pt (own, val): never evaluated"]
    assert reasons(result) == {"never evaluated"}
    assert not set(result.not_reused) & set(again.first.not_reused)
    assert len(result.record.ingredients) == 4


def test_one_more_method_asks_only_for_its_own_candidates(again: Again) -> None:
    result = again.build("search.methods=[uniform, greedy, pruned]")
    assert "singles" not in forwarded(result)
    # Greedy tried one pair of the three, and all of them are one candidate: two pairs are new.
    assert forwarded(result)["candidates"] <= 2 * VAL
    assert forwarded(result)["recalibration"] <= 2 * 250
    assert reasons(result) == {"never evaluated"}


def test_a_ledger_of_a_search_that_stopped_early_gives_the_plain_search_its_recipe(
    again: Again, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 29: what was seen of a stopped candidate is not asked again, and the rest of it is."""
    with as_in_a_new_process():
        plain = build_at(again.project, tmp_path / "plain", "search.early_stop=false")
    warmed = again.build("search.early_stop=false")
    assert same_files(plain.folder, warmed.folder)
    assert [trial.val for trial in plain.trials] == [trial.val for trial in warmed.trials]
    images = {name: forwarded(result).get("candidates", 0) for name, result in (("plain", plain), ("warm", warmed))}
    first = forwarded(again.first)["candidates"]
    assert images == {"plain": first + images["warm"], "warm": images["warm"]}
    assert "recalibration" not in forwarded(warmed)


# ---- a changed input invalidates what depends on it


def test_other_bytes_of_a_checkpoint_make_it_a_new_one(again: Again) -> None:
    path = again.project / "runs/epoch-5.pt"
    saved = torch.load(path)
    saved["model"]["9.bias"][0] += 0.01
    torch.save(saved, path)
    result = again.build()
    assert forwarded(result)["singles"] <= VAL
    assert all("epoch-5.pt" in line for line in result.not_reused)
    assert "epoch-5.pt (own, val): never evaluated" in result.not_reused


@pytest.mark.parametrize("name", ["models.py", "widths.py"])
def test_another_source_of_the_model_or_of_what_it_imports_invalidates_everything(again: Again, name: str) -> None:
    with (again.project / name).open("a") as file:
        file.write("# a comment, which may as well have been code\n")
    result = again.build()
    assert_all_anew(result, again.first)
    assert all(reason.startswith(f"code.{name} was ") for reason in reasons(result))


def test_another_mean_invalidates_everything(again: Again) -> None:
    result = again.build("preprocess.mean=[0.31]")
    assert {"singles", "candidates", "recalibration", "judging"} <= forwarded(result).keys()
    assert forwarded(result)["singles"] == 3 * VAL
    assert all("preprocess.mean was [0.3], is [0.31]" in reason for reason in reasons(result))


def test_other_threads_invalidate_everything(again: Again, two_threads: None) -> None:
    result = again.build()
    assert_all_anew(result, again.first)
    assert reasons(result) == {"machine.torch_threads was 1, is 2"}


@pytest.mark.parametrize(("edit", "fact"), [(one_pixel, "data.list_sha256"), (one_label, "data.targets_sha256")])
def test_one_pixel_or_one_label_of_val_invalidates_what_was_measured_on_val(
    again: Again, edit: Callable[[Mapping[str, np.ndarray]], None], fact: str
) -> None:
    change(again.project / "val.npz", edit)
    result = again.build()
    assert forwarded(result)["singles"] == 3 * VAL
    assert "recalibration" not in forwarded(result)
    assert forwarded(result)["judging"] == forwarded(again.first)["judging"] - 2 * TEST
    assert all(reason.startswith(f"{fact} was ") for reason in reasons(result))


def test_one_image_of_test_invalidates_what_was_measured_on_test(again: Again) -> None:
    change(again.project / "test.npz", one_pixel)
    result = again.build()
    assert forwarded(result) == {"judging": 2 * TEST}
    assert all(reason.startswith("data.list_sha256 was ") for reason in reasons(result))


def test_one_image_of_train_invalidates_soups_but_no_single(again: Again) -> None:
    change(again.project / "train.npz", one_pixel)
    assert_soups_anew(again.build(), again.first, fact="batchnorm.list_sha256 was ")


@pytest.mark.parametrize(
    ("option", "fact"),
    [("batchnorm.samples=200", "batchnorm.samples was 250, is 200"), ("batchnorm.batch=50", "batchnorm.batch was 100")],
)
def test_another_recalibration_invalidates_soups_but_no_single(again: Again, option: str, fact: str) -> None:
    assert_soups_anew(again.build(option), again.first, fact=fact)


def test_another_metric_invalidates_evaluations_but_no_statistics(again: Again) -> None:
    result = again.build("metric=top5", "search.methods=[uniform]")
    assert forwarded(result)["singles"] > 0
    assert forwarded(result)["candidates"] == VAL
    assert "recalibration" not in forwarded(result)
    assert {reason for reason in reasons(result) if reason != "never evaluated"} == {"metric was accuracy, is top5"}


# ---- a ledger that is lost


def test_a_ledger_that_is_gone_costs_a_build_from_the_start(again: Again) -> None:
    (again.out / "ledger.sqlite").unlink()
    result = again.build()
    assert forwarded(result) == forwarded(again.first)
    assert same_files(result.folder, again.first.folder)


@pytest.mark.parametrize("keep", [0, 5000])
def test_a_damaged_ledger_costs_a_build_from_the_start_and_is_kept_aside(again: Again, keep: int) -> None:
    """From the first byte on, and from the middle on."""
    path = again.out / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[:keep] + b"\xff" * 20_000)
    result = again.build()
    assert forwarded(result) == forwarded(again.first)
    assert same_files(result.folder, again.first.folder)
    assert (again.out / "ledger.sqlite.damaged").exists()
    assert forwarded(again.build()) == {}


def assert_all_anew(result: BuildResult, first: BuildResult) -> None:
    assert forwarded(result) == forwarded(first)
    assert len(result.not_reused) == len(first.not_reused)
    assert same_files(result.folder, first.folder)


def assert_soups_anew(result: BuildResult, first: BuildResult, *, fact: str) -> None:
    assert "singles" not in forwarded(result)
    assert forwarded(result)["candidates"] > 0
    assert forwarded(result)["recalibration"] > 0
    # Of the figures for the report, only the winner on test: the averaged policy and the single need no images.
    assert forwarded(result)["judging"] <= forwarded(first)["judging"]
    assert all(fact in reason for reason in reasons(result))
    assert all("(recalibrated, " in line for line in result.not_reused)
