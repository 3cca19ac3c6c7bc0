"""Which weights a checkpoint's tree holds: containers, EMA policy, names; on trees as the unpickler gives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.containers import Use, Weights, find_weights, recorded_numbers
from soup.rebuild import Inert, Unreadable
from soup.tensors import TensorSpec


def spec(number: int = 0, shape: tuple[int, ...] = (2,)) -> TensorSpec:
    return TensorSpec(Path("some.pt"), number, torch.float32, shape, (1,) * len(shape))


def weights(value: object, *, use: Use = "auto", drop: tuple[str, ...] = ()) -> Weights:
    return find_weights(value, use=use, drop=drop)


def module(*, parameters: dict[str, object], children: dict[str, object] | None = None, **state: object) -> Inert:
    empty: dict[str, object] = {"_buffers": {}, "_non_persistent_buffers_set": set()}
    return Inert("some.Module", (), empty | {"_parameters": parameters, "_modules": children or {}} | state)


RAW, EMA = {"a": spec(1)}, {"a": spec(2)}
OPTIMISER = {"state": {0: {"exp_avg": spec(9)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("tree", "container"),
    [
        (RAW, "flat"),
        (RAW | {"epoch": 3, "optimizer": OPTIMISER}, "flat"),
        ({"state_dict": RAW, "optimizer": OPTIMISER}, "state_dict"),
        ({"model": RAW, "optimizer": OPTIMISER, "scheduler": {"last": 1}}, "model"),
        ({"model_state_dict": RAW, "optimizer_state_dict": OPTIMISER}, "model_state_dict"),
        ({"model": {"state_dict": RAW}}, "model.state_dict"),
        ({"params": RAW}, "params"),
        ({"model": module(parameters={"a": spec(1)}), "optimizer": OPTIMISER}, "model"),
        (module(parameters={"a": spec(1)}), "module"),
    ],
)
def test_the_weights_are_found_and_nothing_else(tree: object, container: str) -> None:
    """Correctness 10 and 11."""
    found = weights(tree)
    assert (found.container, found.kind, found.tensors) == (container, "raw", RAW)
    with pytest.raises(ValueError, match=f"has no ema weights, only those under '{container}'"):
        weights(tree, use="ema")


@pytest.mark.parametrize(
    ("tree", "raw", "ema"),
    [
        ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict", "state_dict_ema"),
        ({"model": RAW, "model_ema": {"n_averaged": spec(5, ()), "module.a": spec(2)}}, "model", "model_ema"),
        ({"model": RAW, "ema": {"module": EMA, "updates": 3}}, "model", "ema.module"),
        ({"model": RAW, "ema_state_dict": EMA}, "model", "ema_state_dict"),
        ({"params": RAW, "params_ema": EMA}, "params", "params_ema"),
        (
            {"state_dict": EMA, "ema_state_dict": {"steps": spec(5, ()), "module.a": spec(1)}},
            "ema_state_dict",
            "state_dict",
        ),
        ({"state_dict": EMA, "current_model_state": RAW, "averaging_state": {}}, "current_model_state", "state_dict"),
        ({"model": None, "ema": module(parameters={"a": spec(2)}), "updates": 9}, None, "ema"),
        ({"model": module(parameters={"a": spec(2)}), "ema": None, "updates": None}, None, "model"),
        ({"n_averaged": spec(5, ()), "module.a": spec(2)}, None, "flat"),
    ],
)
def test_ema_weights_are_taken_where_there_are_any_or_as_asked(tree: object, raw: str | None, ema: str) -> None:
    """Correctness 11 and 13."""
    for use in ("auto", "ema"):
        found = weights(tree, use=use)
        assert (found.container, found.kind, found.tensors) == (ema, "ema", EMA)
    if raw is None:
        with pytest.raises(ValueError, match="has no raw weights"):
            weights(tree, use="raw")
    else:
        found = weights(tree, use="raw")
        assert (found.container, found.kind, found.tensors) == (raw, "raw", RAW)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"generator": RAW, "critic": RAW}, "no weights under a known name; its entries: 'generator', 'critic'. Save"),
        ({"optimizer": OPTIMISER, "epoch": 3}, "its entries: 'optimizer', 'epoch'"),
        ({}, "its entries: none"),
        ([], "holds no weights, only list"),
        (Inert("some.Thing", ()), "holds no weights, only some.Thing"),
        (3, "holds no weights, only int"),
        ({"state_dict": RAW | {"fc": Unreadable("a quantised tensor")}}, "tensor 'fc' is a quantised tensor"),
        ({"fc.packed": (Unreadable("a quantised tensor"), None)} | RAW, "tensor 'fc.packed' is a quantised tensor"),
    ],
)
def test_what_holds_no_weights_says_what_it_holds(tree: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        weights(tree)


def test_other_weights_beside_the_chosen_ones_are_told() -> None:
    assert weights({"model": RAW, "net": EMA}).notes == ("also holds weights under 'net', not used",)


def test_a_pickled_module_gives_what_its_state_dict_would() -> None:
    """Correctness 11: Ultralytics."""
    shared = module(parameters={"w": spec(4), "bias": None})
    buffers: dict[str, object] = {"running": spec(2), "anchors": spec(3), "none": None}
    first = module(parameters={"w": spec(1)}, _buffers=buffers, _non_persistent_buffers_set={"anchors"})
    tree = {"ema": module(parameters={}, children={"0": first, "1": shared, "2": shared, "3": None}), "model": None}
    assert dict(weights(tree).tensors) == {"0.w": spec(1), "0.running": spec(2), "1.w": spec(4), "2.w": spec(4)}


def test_a_module_inside_itself_and_one_of_endless_paths_are_refused() -> None:
    itself = module(parameters={"w": spec()})
    itself.state["_modules"]["again"] = itself  # type: ignore[index]
    doubled = module(parameters={})
    for _ in range(64):
        doubled = module(parameters={}, children={"a": doubled, "b": doubled})
    for tree in (itself, doubled):
        with pytest.raises(ValueError, match="nested without end"):
            weights({"model": tree})


def test_a_quantised_module_is_refused_by_name() -> None:
    layer = module(parameters={})
    layer.name = "torch.ao.nn.quantized.modules.linear.Linear"
    with pytest.raises(ValueError, match=r"module 'fc\.' is quantised"):
        weights({"model": module(parameters={"w": spec()}, children={"fc": layer})})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["model.a", "model.b"], ["a", "b"]),
        (["module._orig_mod.model.a", "module._orig_mod.model.b"], ["a", "b"]),
        (["_orig_mod.module.model.module.a", "_orig_mod.module.model.module.b"], ["a", "b"]),
        (["model.a", "criterion.b"], ["model.a", "criterion.b"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["backbone._orig_mod.a", "head.b"], ["backbone.a", "head.b"]),
        (["stem._fsdp_wrapped_module.a", "b._checkpoint_wrapped_module._orig_mod.c"], ["stem.a", "b.c"]),
        (["neck.module.a", "b"], ["neck.module.a", "b"]),
        (["not_orig_mod.a", "remodel.b"], ["not_orig_mod.a", "remodel.b"]),
        (["model", "model.a"], ["model", "model.a"]),
    ],
)
def test_prefixes_go_where_all_names_have_them_and_wrappers_anywhere(names: list[str], expected: list[str]) -> None:
    """Correctness 12."""
    found = weights({name: spec(number) for number, name in enumerate(names)})
    assert dict(found.tensors) == {name: spec(number) for number, name in enumerate(expected)}
    assert bool(found.notes) == (names != expected)


@given(
    st.lists(st.sampled_from(["module.", "model.", "_orig_mod."]), max_size=5),
    st.lists(st.sampled_from(["a", "b.c", "b.model.d", "module_e"]), min_size=2, unique=True),
)
@settings(max_examples=30, deadline=None)
def test_any_pile_of_prefixes_leaves_the_same_names(pile: list[str], names: list[str]) -> None:
    """Correctness 12."""
    found = weights({"".join(pile) + name: spec(number) for number, name in enumerate(names)})
    assert list(found.tensors) == names


def test_names_that_fall_together_without_their_wrappers_are_refused() -> None:
    with pytest.raises(ValueError, match="two tensors have one name"):
        weights({"a._orig_mod.w": spec(1), "a.w": spec(2)})


def test_drop_matches_names_with_and_without_prefix_and_is_told() -> None:
    tree = {"module.model.a": spec(1), "module.criterion.b": spec(2), "module.criterion.c": spec(3)}
    for pattern in ("criterion.*", "module.criterion.?", "*criterion*"):
        found = weights(tree, drop=(pattern,))
        assert dict(found.tensors) == {"a": spec(1)}
        assert "dropped: 'module.criterion.b', 'module.criterion.c'" in found.notes
    with pytest.raises(ValueError, match="leaves no tensor"):
        weights(tree, drop=("*",))


def test_a_buffer_named_like_a_counter_stays_where_it_is_no_averaged_model() -> None:
    assert set(weights({"state_dict": {"steps": spec(1, ()), "a": spec(2)}}).tensors) == {"steps", "a"}


def test_recorded_numbers_are_epoch_and_metrics() -> None:
    monitor = {"monitor": "val_map", "current_score": spec(7, ()), "best_model_path": "x"}
    tree = {
        "epoch": 3, "best_acc1": 0.5, "metric": spec(8, ()), "lr": 0.1, "args": Inert("argparse.Namespace", ()),
        "best": True, "loss": replace(spec(9, ()), dtype=torch.complex64), "fitness": None, "step": 10**400,
        "metrics": {"mAP50-95": 0.4}, "meta": {"iter": 12}, "state_dict": RAW,
        "callbacks": {"ModelCheckpoint": monitor},
    }  # fmt: skip
    assert recorded_numbers(tree) == {
        "epoch": 3.0, "best_acc1": 0.5, "metric": spec(8, ()), "mAP50-95": 0.4, "iter": 12.0, "val_map": spec(7, ()),
    }  # fmt: skip
    assert recorded_numbers(RAW) == {}
    assert recorded_numbers(3) == {}
