"""A split: what the model is fed, its targets, and who each sample is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from calib.samples import sample_sha256
from soup import SoupError
from soup.data import Split, load_split
from soup.preprocess import Preprocess

PREPROCESS = Preprocess(
    resize=20, crop=16, interpolation="bilinear", backend="pil", color="rgb", letterbox=None,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


def image_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 3) -> Path:
    for seed, name in enumerate(name for name in classes for _ in range(each)):
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (24 + seed, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{seed}.jpg")
    return root


def split(
    folder: Path, source: str | Callable[[], object] = "val", preprocess: Preprocess | None = PREPROCESS, on_bad="fail"
) -> Split:
    return load_split(
        "val", source, folder=folder, preprocess=preprocess, cache=folder / "cache", max_gb=1, on_bad=on_bad
    )


def test_a_folder_is_fed_as_torchvision_would_feed_it(tmp_path):
    """Same order, same labels, same bits."""
    image_folder(tmp_path / "val")
    ours = split(tmp_path)
    theirs = ImageFolder(
        tmp_path / "val",
        transforms.Compose(
            [
                transforms.Resize(20),
                transforms.CenterCrop(16),
                transforms.ToTensor(),
                transforms.Normalize(PREPROCESS.mean, PREPROCESS.std),
            ]
        ),
    )
    assert ours.class_names == tuple(theirs.classes)
    assert ours.targets["label"].tolist() == theirs.targets
    assert ours.targets["label"].dtype == np.int64
    assert np.array_equal(ours.inputs(np.arange(len(ours))), np.stack([image.numpy() for image, _ in theirs]))
    assert list(ours.hashes) == [sample_sha256(row) for row in ours.images]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 20), batch=st.integers(1, 25), data=st.data())
def test_batches_hold_every_sample_exactly_once(tmp_path_factory, count, batch, data):
    """Correctness 31: the last batch is smaller, never dropped nor filled up."""
    folder = tmp_path_factory.mktemp("split")
    tensors = np.arange(count, dtype=np.float32)[:, None, None, None]
    samples = split(folder, lambda: list(zip(tensors, range(count), strict=True)), preprocess=None)
    order = data.draw(st.none() | st.permutations(range(count)))
    indices = []
    for places, inputs, targets in samples.batches(batch, order=order):
        assert 1 <= len(places) <= batch
        assert np.array_equal(inputs["input"].ravel(), places)
        assert np.array_equal(targets["label"], places)
        indices += places.tolist()
    assert indices == list(range(count) if order is None else order)


def test_an_order_may_choose_some_samples(tmp_path):
    image_folder(tmp_path / "val")
    samples = split(tmp_path)
    ((places, inputs, _),) = samples.batches(8, order=[5, 2])
    assert places.tolist() == [5, 2]
    assert np.array_equal(inputs["input"], samples.inputs(np.arange(9))[[5, 2]])


def test_one_mean_serves_all_channels(tmp_path):
    image_folder(tmp_path / "val", each=1)
    plain = Preprocess(
        resize=20,
        crop=16,
        interpolation="bilinear",
        backend="pil",
        color="gray",
        letterbox=None,
        mean=(0.5,),
        std=(0.5,),
    )
    samples = split(tmp_path, preprocess=plain)
    expected = (samples.images.transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    assert np.allclose(samples.inputs(np.arange(3)), expected, atol=1e-6)


def test_a_bad_image_fails_or_is_skipped_and_listed(tmp_path):
    image_folder(tmp_path / "val")
    (tmp_path / "val/bee/4.jpg").write_bytes(b"no image")
    (tmp_path / "val/cat/6.jpg").write_bytes(b"")
    with pytest.raises(
        SoupError, match=r"val: 2 of 9 images cannot be read: bee/4.jpg: .*; cat/6.jpg: .*on_bad_sample: skip"
    ):
        split(tmp_path)
    samples = split(tmp_path, on_bad="skip")
    assert [name for name, _ in samples.skipped] == ["bee/4.jpg", "cat/6.jpg"]
    assert len(samples) == len(samples.images) == 7
    assert samples.targets["label"].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_path_in_a_csv_that_is_not_there_is_a_bad_image(tmp_path):
    image_folder(tmp_path, each=1)
    (tmp_path / "val.csv").write_text("path,label,group\nant/0.jpg,0,p\nant/9.jpg,0,q\ncat/2.jpg,2,r\n")
    with pytest.raises(SoupError, match=r"1 of 3 images cannot be read: ant/9.jpg: No such file"):
        split(tmp_path, "val.csv")
    assert split(tmp_path, "val.csv", on_bad="skip").groups.tolist() == ["p", "r"]


def test_without_a_group_column_there_are_no_groups(tmp_path):
    image_folder(tmp_path / "val", each=1)
    assert split(tmp_path).groups is None


def test_labels_may_change_without_decoding_again(tmp_path):
    image_folder(tmp_path, each=1)
    (tmp_path / "val.csv").write_text("path,label\nant/0.jpg,0\ncat/2.jpg,2\n")
    split(tmp_path, "val.csv")
    (tmp_path / "val.csv").write_text("path,label\nant/0.jpg,1\ncat/2.jpg,1\n")
    assert split(tmp_path, "val.csv").targets["label"].tolist() == [1, 1]
    assert len(list((tmp_path / "cache").glob("*.raw"))) == 1
