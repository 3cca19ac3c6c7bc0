"""From files to targets, by task: boxes and masks at the size they are compared at, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from soup import SoupError
from soup.box_truth import boxes
from soup.data import Split, load_split
from soup.label_truth import LABELS, several_labels
from soup.mask_truth import masks
from soup.preprocess import Letterbox, Preprocess
from soup.sources import Sample, Source
from soup.truth import Reader, Unusable, without_bad
from tests.soup.segmentation_project import IGNORED, sorted_masks, write_scenes

PLAIN = Preprocess(None, None, "bilinear", "pil", "rgb", None, (0.0,), (1.0,))
BOXED = Preprocess(None, None, "bilinear", "pil", "rgb", Letterbox((30, 44), 114, True), (0.0,), (1.0,))


def opened(
    folder: Path, source: Any, reader: Reader, *, name: str = "val", preprocess: Preprocess | None = BOXED,
    on_bad: Literal["fail", "skip"] = "fail",
) -> Split:  # fmt: skip
    return load_split(
        name, source, folder=folder, preprocess=preprocess, cache=folder / "cache", max_gb=1, on_bad=on_bad,
        reader=reader,
    )  # fmt: skip


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes of 24×32 and one of 20×27."""
    write_scenes(tmp_path / "val", 2, seed=0)
    write_scenes(tmp_path / "val", 1, seed=0, size=(20, 27), first=2)
    return tmp_path


def mask_reader(at: Literal["image", "input"] = "image", **more: Any) -> Reader:
    return masks(IGNORED, **{"classes": ("ground", "bar", "disc"), "at": at, **more})


def test_masks_of_several_sizes_are_padded_with_what_counts_for_nothing(scenes: Path) -> None:
    targets = opened(scenes, "val", mask_reader()).targets
    own = [np.array(Image.open(path)) for path in sorted_masks(scenes / "val")]
    assert targets["mask"].shape == (3, 24, 32)
    assert (targets["mask"][0] == own[0]).all()
    assert (targets["mask"][2, :20, :27] == own[2]).all()
    assert (targets["mask"][2, 20:] == IGNORED).all()
    assert (targets["mask"][2, :, 27:] == IGNORED).all()
    assert targets["size"].tolist() == [[24, 32], [24, 32], [20, 27]]
    assert targets["canvas"].tolist() == [[30, 44]] * 3
    assert targets["placement"].tolist() == [[1.25, 1.25, 2, 0]] * 2 + [[40 / 27, 30 / 20, 2, 0]]


def test_masks_at_the_input_go_through_the_letterbox_by_nearest_neighbour(scenes: Path) -> None:
    targets = opened(scenes, "val", mask_reader("input")).targets
    assert targets["mask"].shape == (3, 30, 44)
    first = Image.open(sorted_masks(scenes / "val")[0]).resize((40, 30), Image.Resampling.NEAREST)
    assert (targets["mask"][0, :, 2:42] == np.array(first)).all()
    assert (targets["mask"][0][:, [0, 1, 42, 43]] == IGNORED).all()


def test_train_is_only_looked_at_so_its_masks_are_not_read(scenes: Path) -> None:
    (scenes / "val/masks/01.png").write_bytes(b"no image")
    assert opened(scenes, "val", mask_reader(), name="train").targets == {}
    with pytest.raises(SoupError, match=r"1 problem: 01: .*01\.png: no image format that PIL knows"):
        opened(scenes, "val", mask_reader())


def test_a_mask_that_cannot_be_used_is_skipped_with_its_image_on_request(scenes: Path) -> None:
    (scenes / "val/masks/01.png").unlink()
    split = opened(scenes, "val", mask_reader(), on_bad="skip")
    assert split.ids == ("00", "02")
    assert len(split.targets["mask"]) == len(split.images) == 2
    ((name, reason),) = split.skipped
    assert name == "01"
    assert "masks/01.png: no such file, the mask of " in reason


def test_masks_that_are_all_ignored_judge_nothing(scenes: Path) -> None:
    for path in sorted_masks(scenes / "val"):
        Image.fromarray(np.full_like(np.array(Image.open(path)), IGNORED)).save(path)
    with pytest.raises(SoupError, match=r"images: all pixels of 3 masks are 255: nothing can be judged\."):
        opened(scenes, "val", mask_reader())


def test_a_palette_turns_colours_into_classes(scenes: Path) -> None:
    own = [np.array(Image.open(path)) for path in sorted_masks(scenes / "val")]
    colours = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 128, 255), IGNORED: (255, 255, 255)}
    for path, mask in zip(sorted_masks(scenes / "val"), own, strict=True):
        table = np.zeros((256, 3), np.uint8)
        table[list(colours)] = list(colours.values())
        Image.fromarray(table[mask]).save(path)
    palette = {"#000000": 0, "#ff0000": 1, "#0080ff": 2, "#ffffff": IGNORED}
    targets = opened(scenes, "val", mask_reader(palette=palette)).targets
    assert (targets["mask"][0] == own[0]).all()
    with pytest.raises(SoupError, match=r"the colour #0080ff, which the palette does not name"):
        opened(scenes, "val", mask_reader(palette={key: palette[key] for key in palette if key != "#0080ff"}))


def test_without_preprocess_an_image_is_where_it_is(tmp_path: Path) -> None:
    pairs = [(np.zeros((3, 6, 8), np.float32), np.full((6, 8), value, np.uint8)) for value in (0, 1)]
    split = opened(tmp_path, lambda: pairs, mask_reader(), preprocess=None)
    assert split.targets["placement"].tolist() == [[1, 1, 0, 0]] * 2
    assert split.targets["canvas"].tolist() == [[6, 8]] * 2
    assert split.targets["mask"].shape == (2, 6, 8)


def test_boxes_are_in_pixels_of_the_original_and_padded_to_the_most_of_one_image(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", 2, seed=0)
    (tmp_path / "set/labels").mkdir()
    (tmp_path / "set/labels/00.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.25 0.5 0.5 1\n")
    (tmp_path / "set/labels/01.txt").write_text("0 0.5 0.5 1 1\n")
    source = {"images": "set/images", "annotations": "set/labels"}
    targets = opened(tmp_path, source, boxes(("a", "b"))).targets
    assert targets["boxes"].tolist() == [[[12, 6, 20, 18], [0, 0, 16, 24]], [[0, 0, 32, 24], [0, 0, 0, 0]]]
    assert targets["labels"].tolist() == [[1, 0], [0, -1]]
    assert targets["crowd"].tolist() == [[False, False]] * 2
    assert targets["area"].tolist() == [[96, 384], [768, 0]]
    assert targets["size"].tolist() == [[24, 32]] * 2
    assert targets["placement"].tolist() == [[1.25, 1.25, 2, 0]] * 2


def test_a_split_without_one_box_judges_nothing(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", 2, seed=0)
    (tmp_path / "set/labels").mkdir()
    for name in ("00", "01"):
        (tmp_path / f"set/labels/{name}.txt").write_text("")
    source = {"images": "set/images", "annotations": "set/labels"}
    with pytest.raises(SoupError, match=r"images: no box to judge by in 2 images, expected one or more"):
        opened(tmp_path, source, boxes(("a",)))


def test_several_labels_become_a_row_of_flags_and_one_label_a_number(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", 3, seed=0)
    rows = "path,labels\n" + "".join(
        f"set/images/{name}.png,{labels}\n" for name, labels in (("00", "cat;dog"), ("01", ""), ("02", "dog"))
    )
    (tmp_path / "labels.csv").write_text(rows)
    split = opened(tmp_path, "labels.csv", several_labels(None), preprocess=PLAIN)
    assert split.class_names == ("cat", "dog")
    assert split.targets["labels"].tolist() == [[True, True], [False, False], [False, True]]
    (tmp_path / "one.csv").write_text(
        rows.replace("labels", "label").replace("cat;dog", "cat").replace(",\n", ",cat\n")
    )
    split = opened(tmp_path, "one.csv", LABELS, preprocess=PLAIN)
    assert split.targets["label"].tolist() == [0, 0, 1]


def test_a_folder_is_no_source_of_several_labels(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"data\.val: 'set', expected a \.csv or a callable, since classification\."):
        opened(tmp_path, "set", several_labels(None))


def sample(name: str, *problems: str, usable: bool = True) -> Sample:
    return Sample(name, np.zeros((2, 2, 3), np.uint8), 0, None, None if usable else Unusable(), problems)


def test_all_that_is_wrong_is_told_at_once_or_left_out() -> None:
    samples = [sample("a"), sample("b", "b.png: half of it"), sample("c", "c.png: is gone", usable=False)]
    source = Source("here", samples, 3, None, ["x"], problems=("extra.png: for no image",))
    with pytest.raises(SoupError) as told:
        without_bad(source, on_bad="fail")
    assert str(told.value).startswith(
        "here: 3 problems: extra.png: for no image; b: b.png: half of it; c: c.png: is gone. Repair them, or set "
        "data.on_bad_sample: skip"
    )
    kept, aside = without_bad(source, on_bad="skip")
    assert [one.id for one in kept.samples] == ["a", "b"]
    assert kept.count == 2
    assert [name for name, _ in aside] == ["", "b", "c"]


def test_where_no_image_is_left_nothing_can_follow() -> None:
    source = Source("here", [sample("c", "c.png: is gone", usable=False)], 1, None, ["x"])
    with pytest.raises(SoupError, match=r"here: none of 1 images can be used: c: c\.png: is gone\."):
        without_bad(source, on_bad="skip")


def test_what_a_function_gives_is_judged_when_it_is_read() -> None:
    given = [sample("a"), sample("b", "b: half of it"), sample("c", "c: is gone", usable=False)]
    for policy, bad in (("fail", {"b", "c"}), ("skip", {"c"})):
        kept, aside = without_bad(Source("f", iter(given), None, None, None), on_bad=policy)  # type: ignore[arg-type]
        assert aside == ()
        assert {one.id for one in kept.samples if isinstance(one.image, SoupError)} == bad
