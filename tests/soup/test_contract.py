"""What of an interface changed, as a device would notice it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporters.runtimes import TensorInfo
from soup.contract import Interface, changes, contract_check, layout
from soup.gates import Exit, Subject, exit_code

IMAGE, LOGITS = TensorInfo("input", "float32", ("batch", 3, 224, 224)), TensorInfo("logits", "float32", ("batch", 2))
PREPROCESS = {"resize": 256, "crop": 224, "mean": [0.5], "std": [0.5], "color": "rgb"}
WAS = Interface((IMAGE,), (LOGITS,), ("cat", "dog"), PREPROCESS)


def changed(**fields: object) -> tuple[str, ...]:
    return changes(WAS, replace(WAS, **fields))  # type: ignore[arg-type]


def image(**fields: object) -> tuple[TensorInfo, ...]:
    return (replace(IMAGE, **fields),)  # type: ignore[arg-type]


def test_the_same_interface_passes_whatever_its_dynamic_axes_are_called() -> None:
    now = replace(WAS, inputs=image(shape=("n", 3, 224, 224)), preprocess=dict(PREPROCESS, letterbox=None))
    check = contract_check(WAS, now, Subject("model.onnx", "baseline → ONNX"))
    assert (check.verdict, check.kind) == ("pass", "contract")
    assert check.message == "as before: 'input' float32 (n, 3, 224, 224) → 'logits' float32 (batch, 2)"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"inputs": image(name="image")},
            ("input 'input' is gone", "input 'image' float32 (batch, 3, 224, 224) is new"),
        ),
        ({"inputs": image(dtype="float16")}, ("input 'input' is float16, was float32",)),
        (
            {"inputs": image(shape=("batch", 3, 192, 192))},
            ("input 'input' is (batch, 3, 192, 192), was (batch, 3, 224, 224)",),
        ),
        (
            {"inputs": image(shape=("batch", 224, 224, 3))},
            ("input 'input' is NHWC (batch, 224, 224, 3), was NCHW (batch, 3, 224, 224)",),
        ),
        (
            {"inputs": image(shape=(1, 3, 224, 224))},
            ("input 'input' is (1, 3, 224, 224), was (batch, 3, 224, 224)",),
        ),
        ({"outputs": (replace(LOGITS, name="scores"), LOGITS)}, ("output 'scores' float32 (batch, 2) is new",)),
        ({"classes": ("dog", "cat")}, ("class 0 is 'dog', was 'cat' (and 1 more)",)),
        ({"classes": ("cat", "dog", "cow")}, ("there are 3 classes, were 2",)),
        ({"classes": None, "preprocess": None}, ()),
        ({"preprocess": {}}, ("preprocessing is none, was given",)),
        (
            {"preprocess": {**PREPROCESS, "color": "bgr", "crop": None}},
            ("preprocess.crop is none, was 224", "preprocess.color is bgr, was rgb"),
        ),
    ],
)
def test_every_difference_is_told(fields: dict[str, object], told: tuple[str, ...]) -> None:
    assert changed(**fields) == told


def test_outputs_in_another_order_are_a_difference() -> None:
    boxes = TensorInfo("boxes", "float32", ("n", 4))
    was = Interface((IMAGE,), (LOGITS, boxes))
    told = changes(was, Interface((IMAGE,), (boxes, LOGITS)))
    assert told == ("the outputs come in another order: boxes, logits, were logits, boxes",)


def test_a_changed_interface_fails_with_all_of_it_in_one_sentence() -> None:
    now = replace(WAS, inputs=image(dtype="uint8", shape=("batch", 224, 224, 3)), classes=("cat", "cow"))
    check = contract_check(WAS, now, Subject("model.onnx", "baseline → ONNX"))
    assert exit_code([check]) == Exit.CHECK
    assert check.message == (
        "the interface changed: input 'input' is uint8, was float32; input 'input' is NHWC (batch, 224, 224, 3), was "
        "NCHW (batch, 3, 224, 224); class 1 is 'cow', was 'dog'"
    )


def test_what_graphs_that_take_frames_do_by_themselves_is_no_part_of_the_interface() -> None:
    frames = replace(WAS, inputs=image(dtype="uint8", shape=("batch", 224, 224, 3)))
    other = {**PREPROCESS, "mean": [0.1], "std": [0.2]}
    assert changes(frames, replace(frames, preprocess=other)) == ()
    assert changes(frames, replace(frames, preprocess={**other, "crop": 192})) == ("preprocess.crop is 192, was 224",)
    assert len(changed(preprocess=other)) == 2


def test_a_layout_is_told_by_where_the_channels_are() -> None:
    assert layout(("n", 3, 8, 8)) == "NCHW"
    assert layout(("n", 8, 8, 1)) == "NHWC"
    assert layout(("n", 3, 8, 3)) is layout(("n", 8, 8, 8)) is layout(("n", 3)) is None
