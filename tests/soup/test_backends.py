"""Candidates through ONNX Runtime: torch's statistics to the last row, or torch itself and the reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from exporters.runtimes import Arrays
from soup.backends import Backend, Plan, open_backend, predict_with
from soup.models import load, torch_predict
from soup.swappable import export_swappable
from soup.tasks import Metric
from soup.tasks.classification import CrossEntropy, TopK
from soup.tensors import StateDict

pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")
ACCURACY = TopK("accuracy", k=1)


def network() -> nn.Module:
    """Convolution, BatchNorm, depthwise convolution, head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def weights(model: nn.Module, seed: int) -> StateDict:
    """Random weights and statistics; variances above zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.5 if name.endswith("running_var")
        else torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + seed
        for name, tensor in model.state_dict().items()
    }  # fmt: skip


def images(count: int = 20) -> Arrays:
    return {"input": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def timed(*durations: float) -> Callable[[], float]:
    """A clock that is read before and after each of these, in turn."""
    steps = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)
    readings = itertools.accumulate(steps)
    return lambda: next(readings)


def opened(
    model: nn.Module, *, metric: Metric = ACCURACY, wanted: Literal["auto", "torch", "onnxruntime"] = "onnxruntime"
) -> Backend:
    states = [weights(model, 1), weights(model, 2)]
    return open_backend(model, images(), states, plan=Plan(10, 100, 8), metric=metric, device=CPU, wanted=wanted)


def both(model: nn.Module, state: StateDict, inputs: Arrays, *, backend: Backend) -> tuple[Arrays, Arrays]:
    """What torch gives and what the backend gives."""
    load(model, state)
    reference = torch_predict(model, device=CPU)
    return reference(inputs), predict_with(backend, state, reference, metric=ACCURACY)(inputs)


def test_each_candidate_is_evaluated_with_its_own_weights_and_statistics() -> None:
    model = network()
    backend = opened(model)
    assert backend.name == "onnxruntime", backend.reason
    for seed in (1, 7, 8):
        slow, fast = both(model, weights(model, seed), images(), backend=backend)
        np.testing.assert_allclose(fast["output"], slow["output"], rtol=1e-4, atol=1e-5)
    assert backend.images["onnxruntime"] == 60


def test_the_error_that_is_reckoned_with_is_above_what_other_images_show() -> None:
    model = network()
    backend = opened(model)
    slow, fast = both(model, weights(model, 2), {"input": images(200)["input"][20:]}, backend=backend)
    assert 0 < np.abs(slow["output"] - fast["output"]).max() <= backend.error < 1e-3


def test_rows_that_rounding_could_decide_are_the_references_own() -> None:
    model = network()
    backend = opened(model)
    state = weights(model, 3)
    state["8.weight"][1], state["8.bias"][1] = state["8.weight"][0], state["8.bias"][0]  # two logits are always equal
    state["8.bias"][:2] += 100
    slow, fast = both(model, state, images(), backend=backend)
    np.testing.assert_array_equal(fast["output"], slow["output"])
    assert backend.images["torch"] == 16 + 20


def test_rows_that_are_not_finite_are_the_references_own() -> None:
    model = network()
    backend = opened(model)
    state = weights(model, 2)
    state["8.bias"][0] = np.inf  # the first class wins, whatever the error
    slow, fast = both(model, state, images(), backend=backend)
    np.testing.assert_array_equal(fast["output"], slow["output"])
    assert backend.images["torch"] == 16 + 20


def test_a_candidate_that_differs_by_more_than_rounding_is_left_to_the_reference() -> None:
    model = network()
    backend = opened(model)
    load(model, weights(model, 5))
    reference = torch_predict(model, device=CPU)
    predict = predict_with(backend, weights(model, 6), reference, metric=ACCURACY)  # as if the swap had gone wrong
    np.testing.assert_array_equal(predict(images())["output"], reference(images())["output"])
    assert backend.images["onnxruntime"] == 20
    predict(images())
    assert backend.images["onnxruntime"] == 20


def test_the_network_keeps_its_weights() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    opened(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_are_equal_in_one_candidate_may_differ_in_the_next() -> None:
    model = network()
    ones = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    states = [ones, weights(model, 2)]
    load(model, ones)
    backend = open_backend(
        model, images(), states, plan=Plan(10, 100, 8), metric=ACCURACY, device=CPU, wanted="onnxruntime"
    )
    assert backend.name == "onnxruntime", backend.reason


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 192)
        self.second = self.first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.second(self.first(images.flatten(1))))


def test_tied_tensors_have_to_be_tied_in_the_candidate() -> None:
    model = Tied().eval()
    state = weights(model, 1)
    tied = {name: state[name.replace("second", "first")] for name in state}
    backend = open_backend(
        model, images(), [tied], plan=Plan(10, 100, 8), metric=ACCURACY, device=CPU, wanted="onnxruntime"
    )
    assert backend.name == "onnxruntime", backend.reason
    slow, fast = both(model, state, images(), backend=backend)  # not tied: torch takes the last
    np.testing.assert_array_equal(fast["output"], slow["output"])
    assert backend.images["onnxruntime"] == 0


class Baked(nn.Module):
    """Reads a weight as a number, which tracing makes a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.scale.item()


def test_a_graph_that_holds_a_weight_as_a_constant_is_refused() -> None:
    backend = opened(Baked().eval())
    assert backend.name == "torch"
    assert "off by" in backend.reason


class Branching(nn.Module):
    """Gives as many columns as it gets images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(images.flatten(1))).repeat(1, int(len(images) > 2) + 1)


def test_a_graph_that_fits_one_batch_size_only_is_refused() -> None:
    backend = opened(Branching().eval())
    assert backend.name == "torch"
    assert "other shapes" in backend.reason


class Unexportable(nn.Module):
    """Raises wherever it is traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("no tracing here")
        return images.flatten(1)


def test_a_network_that_cannot_be_exported_is_evaluated_in_torch_and_says_why() -> None:
    backend = opened(Unexportable().eval())
    assert (backend.name, backend.reason) == ("torch", "model: cannot be exported: RuntimeError: no tracing here")


def test_other_devices_and_dtypes_and_wishes_stay_in_torch() -> None:
    model = network()
    states = [weights(model, 1)]
    plan = Plan(10, 100, 8)
    cuda = open_backend(model, images(), states, plan=plan, metric=ACCURACY, device=torch.device("cuda"))
    two = open_backend(model, images() | {"more": np.ones(20)}, states, plan=plan, metric=ACCURACY, device=CPU)
    half = open_backend(network().half(), images(), states, plan=plan, metric=ACCURACY, device=CPU)
    assert [backend.reason for backend in (cuda, two, half, opened(model, wanted="torch"))] == [
        "the network runs on cuda", "the network has 2 inputs", "the network holds torch.float16", "it was asked for",
    ]  # fmt: skip


def test_a_metric_that_reads_every_digit_stays_in_torch() -> None:
    backend = opened(network(), metric=CrossEntropy())
    assert (backend.name, backend.reason) == ("torch", "any rounding changes cross_entropy")


def test_auto_takes_the_runtime_that_is_expected_to_need_less_time() -> None:
    model = network()
    states = [weights(model, 1)]

    def tried(*, torch_s: float, fast_s: float) -> Backend:
        # Torch for the estimate; opening; then both with 1, 3, 8, 8 and 4 of the 20 images.
        clock = timed(torch_s, 0.01, *[torch_s, fast_s] * 5)
        plan = Plan(10, 1000, 8)
        return open_backend(model, images(), states, plan=plan, metric=ACCURACY, device=CPU, clock=clock)

    assert tried(torch_s=1e-4, fast_s=1e-5).reason == "the search takes about 0.1 s in torch"
    assert tried(torch_s=1.0, fast_s=1.0).reason.startswith("ONNX Runtime would take")
    faster = tried(torch_s=1.0, fast_s=0.125)
    assert faster.name == "onnxruntime"
    assert faster.images_per_second == pytest.approx({"torch": 8, "onnxruntime": 64})


def test_the_exported_graph_holds_no_weights() -> None:
    model = network()
    graph = export_swappable(model, images()["input"], outputs=("output",))
    head = model.state_dict()["8.weight"].numpy().tobytes()
    assert head not in graph.model
    assert set(graph.tensors) == {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
