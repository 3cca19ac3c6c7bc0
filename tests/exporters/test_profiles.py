from __future__ import annotations

import pytest

from exporters import ExportError
from exporters.profiles import Bounds, Profile, resolve_profiles
from exporters.runtimes import TensorInfo

IMAGE = TensorInfo("image", "float32", ("batch", 3, 8, 8))
MASK = TensorInfo("mask", "float32", ("batch", 8))
STATIC = TensorInfo("image", "float32", (2, 3, 8, 8))
FREE = TensorInfo("image", "float32", ("batch", 3, "height", 8))


def resolve(
    *profiles: Profile, inputs: tuple[TensorInfo, ...] = (IMAGE, MASK), must_take: int | None = None
) -> tuple[dict[str, Bounds], ...]:
    return resolve_profiles(inputs, profiles, must_take=must_take, where="m.onnx")


def refusal(*profiles: Profile, inputs: tuple[TensorInfo, ...] = (IMAGE, MASK), must_take: int | None = None) -> str:
    with pytest.raises(ExportError) as raised:
        resolve(*profiles, inputs=inputs, must_take=must_take)
    assert raised.value.kind == "input"
    return str(raised.value)


def test_a_batch_range_becomes_whole_shapes_of_every_dynamic_input_in_the_order_of_the_profiles() -> None:
    first, second = resolve((1, 2, 4), (8, 8, 16))

    assert first == {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)), "mask": ((1, 8), (2, 8), (4, 8))}
    assert second["mask"] == ((8, 8), (8, 8), (16, 8))


def test_whole_shapes_may_free_other_axes_than_the_batch() -> None:
    bounds = ((1, 3, 4, 8), (1, 3, 8, 8), (2, 3, 16, 8))

    assert resolve({"image": bounds}, inputs=(FREE,)) == ({"image": bounds},)
    assert "expected only its first axis to be dynamic" in refusal((1, 1, 1), inputs=(FREE,))


def test_a_static_graph_has_no_profile() -> None:
    assert resolve(inputs=(STATIC,)) == ()
    assert "the graph has a static batch, but a profile" in refusal((1, 1, 1), inputs=(STATIC,))
    assert "the graph has a dynamic batch, but no profile" in refusal()


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((1, 3, 8, 8), (2, 3, 8, 8)), "2 shapes, expected min, opt and max"),
        (((2, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8)), "(2, 1, 4) on axis 0, expected 1 <= min <= opt <= max"),
        (((1, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)), "(1, 4, 2) on axis 0, expected 1 <= min <= opt <= max"),
        (((0, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)), "(0, 1, 2) on axis 0, expected 1 <= min <= opt <= max"),
        (((1, 3, 8, 8), (1, 3, 8, 8), (1, 4, 8, 8)), "(3, 3, 4) on axis 1, expected 3 as in the graph"),
        (((1, 3, 8), (1, 3, 8), (1, 3, 8)), "expected 4 axes"),
    ],
)
def test_every_corner_is_checked_on_every_axis(shapes: Bounds, expected: str) -> None:
    assert refusal({"image": shapes}, inputs=(IMAGE,)).endswith(f"{expected}.")


def test_a_profile_names_all_dynamic_inputs_and_no_others() -> None:
    shapes = {"image": ((1, 3, 8, 8),) * 3, "sound": ((1, 8),) * 3}

    assert "is for inputs ['image', 'sound'], expected all dynamic ones: ['image', 'mask']" in refusal(shapes)


@pytest.mark.parametrize(("batch", "taken"), [(1, True), (4, True), (5, False), (8, True), (17, False)])
def test_some_profile_must_take_the_golden_batch(batch: int, taken: bool) -> None:
    if taken:
        assert len(resolve((1, 2, 4), (8, 8, 16), must_take=batch)) == 2
    else:
        message = refusal((1, 2, 4), (8, 8, 16), must_take=batch)
        assert f"the engine would take batches of 1 to 4, 8 to 16, expected {batch} among them" in message


def test_a_static_graph_takes_its_own_batch_only() -> None:
    assert resolve(inputs=(STATIC,), must_take=2) == ()
    assert "would take batches of 2, expected 3 among them" in refusal(inputs=(STATIC,), must_take=3)
