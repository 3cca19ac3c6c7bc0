from __future__ import annotations

from exporters.dla import Placement, placement

LAYERS = ("conv1", "relu1", "conv2", "relu2", "pool", "flatten", "head", "softmax")
TYPED = [
    "---------- Layers Running on DLA ----------",
    "[DlaLayer] {ForeignNode[conv1...relu2]}",
    "[DlaLayer] {ForeignNode[head]}",
    "---------- Layers Running on GPU ----------",
    "[GpuLayer] COPY: Reformatting CopyNode for Network Input input",
    "[GpuLayer] POOLING: pool",
    "[GpuLayer] SHUFFLE: reshape_after_head",
    "[GpuLayer] SOFTMAX: softmax",
]


def test_a_subgraph_on_the_dla_counts_all_layers_between_its_first_and_its_last() -> None:
    placed = placement(TYPED, LAYERS)

    assert placed == Placement(dla=("conv1", "relu1", "conv2", "relu2", "head"), gpu=("pool", "softmax"))
    assert placed.share == 5 / 7


def test_a_layer_that_is_on_the_gpu_does_not_count_as_between() -> None:
    placed = placement([*TYPED, "[GpuLayer] conv2"], LAYERS)

    assert placed is not None
    assert placed.dla == ("conv1", "relu1", "relu2", "head")
    assert placed.gpu == ("conv2", "pool", "softmax")


def test_fused_layers_on_the_gpu_are_told_one_by_one_whatever_the_form() -> None:
    log = ["---------- Layers Running on DLA ----------\n[GpuLayer] conv1 + relu1", "[GpuLayer] PWN(PWN(relu2), pool)"]

    assert placement(log, LAYERS) == Placement(dla=(), gpu=("conv1", "relu1", "relu2", "pool"))


def test_a_log_without_the_lists_tells_nothing() -> None:
    assert placement(["Building engine", "[GpuLayer] conv1"], LAYERS) is None


def test_where_the_lists_are_empty_nothing_runs_on_the_dla() -> None:
    placed = placement(TYPED[:1], LAYERS)

    assert placed == Placement((), ())
    assert placed.share == 0.0
