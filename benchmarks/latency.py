"""soup's times beside a plain session.run loop and ONNX Runtime's own profile; the noise of A against A; bounds kept.

All of one network run in turns, round after round, so that what the machine does meanwhile falls on each alike.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision

from exporters.interleaved import Turns, measure_pair, median_interval
from exporters.latency import measure
from exporters.pacing import Timing
from exporters.runtimes import OnnxRuntime, open_onnx
from exporters.torch_to_onnx import torch_to_onnx

NETWORKS = ("mobilenet_v3_small", "resnet18", "efficientnet_b0")
_MICROSECONDS_PER_MS = 1e3


def run(*, quick: bool = False) -> dict[str, Any]:
    """`rows`: medians in ms by network, and ratios with their 95 % intervals; `pairs`: a network against itself.

    The plain loop calls `session.run` and reads time.perf_counter_ns; the profile's figure is the median of its
    `model_run` events, which begin inside of the call. One thread everywhere: with more, what else the machine does
    decides.
    """
    networks, rounds, calls = (NETWORKS[:1], 8, 3) if quick else (NETWORKS, 60, 5)
    rows, pairs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in networks:
            path = export(name, Path(folder))
            rows.append({"network": name, **compare(path, rounds=rounds, calls=calls)})
            pairs += [{"network": name, **against_itself(path, seed, quick=quick)} for seed in range(1 if quick else 3)]
    return {
        "setting": {"rounds": rounds, "calls_per_round": calls, "batch": 1, "threads": 1},
        "rows": rows,
        "pairs": pairs,
    }


def export(name: str, folder: Path) -> Path:
    """The network with random weights, 224 × 224, batch 1: time does not depend on what it has learned."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    example = {"input": np.zeros((1, 3, 224, 224), np.float32)}
    path = folder / f"{name}.onnx"
    torch_to_onnx(
        model, example, path, inputs={"input": "float32"}, outputs={"output": "float32"}, batch=1, opset=18, metadata={}
    )
    return path


def compare(path: Path, *, rounds: int, calls: int) -> Mapping[str, object]:
    """Medians over all rounds, and of the rounds' ratios, each round being its own pair."""
    inputs = {"input": np.random.default_rng(0).random((1, 3, 224, 224), np.float32)}
    plain = plain_session(path)
    profiled, profile = profiled_session(path)
    times: dict[str, list[float]] = {"soup": [], "plain": [], "profile": []}
    with open_onnx(path, threads=1) as runtime:
        loops = {
            "plain": lambda: loop_median(lambda: plain.run(None, inputs), calls),
            "soup": lambda: soup_median(runtime, inputs, calls),
            "profile": lambda: loop_median(lambda: profiled.run(None, inputs), calls),
        }
        names = list(loops)
        for index in range(rounds + 1):
            for name in names[index % 3 :] + names[: index % 3]:  # each is first, second and third as often
                times[name].append(loops[name]())
    times["profile"] = model_run_medians(Path(profile()), rounds + 1, calls)
    kept = {name: values[1:] for name, values in times.items()}  # the first round warms up
    medians = {f"{name}_ms": statistics.median(values) for name, values in kept.items()}
    return {
        **medians,
        "soup_over_plain": ratio(kept["soup"], kept["plain"]),
        "soup_over_profile": ratio(kept["soup"], kept["profile"]),
        "plain_over_profile": ratio(kept["plain"], kept["profile"]),
    }


def loop_median(call: Callable[[], object], calls: int) -> float:
    """The loop that anyone would write."""
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(times)


def soup_median(runtime: OnnxRuntime, inputs: Mapping[str, np.ndarray], calls: int) -> float:
    """What `soup bench` and a release's report say."""
    return measure(lambda: runtime(inputs), Timing(0, calls, 600.0), contract={"batch": 1}).p50_ms


def ratio(one: list[float], other: list[float]) -> str:
    """The median of the rounds' ratios, with its interval."""
    ratios = np.sort([a / b for a, b in zip(one, other, strict=True)])
    low, high = median_interval(ratios, confidence=0.95)
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{np.median(ratios):.3f}{interval}"


def plain_session(path: Path) -> Any:
    """A session with the settings that exporters.runtimes chooses, and nothing else of it."""
    return onnxruntime.InferenceSession(path.read_bytes(), options(), providers=["CPUExecutionProvider"])


def profiled_session(path: Path) -> tuple[Any, Callable[[], str]]:
    """A session that profiles itself, and what ends it and gives the profile's path."""
    settings = options()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])
    return session, session.end_profiling


def options() -> Any:
    """As exporters.ort_session sets them."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    return settings


def model_run_medians(profile: Path, rounds: int, calls: int) -> list[float]:
    """Each round's median `model_run` in ms, from the events in their order; `dur` is in microseconds."""
    events = json.loads(profile.read_bytes())
    times = [event["dur"] / _MICROSECONDS_PER_MS for event in events if event.get("name") == "model_run"]
    return [statistics.median(times[index * calls : (index + 1) * calls]) for index in range(rounds)]


def against_itself(path: Path, seed: int, *, quick: bool) -> Mapping[str, object]:
    """Two sessions of one file in turns: how far from 1 the ratio and its interval come to lie by noise alone."""
    inputs = {"input": np.random.default_rng(seed).random((1, 3, 224, 224), np.float32)}
    turns = Turns(blocks=8 if quick else 60, calls=2)
    with open_onnx(path, threads=1) as one, open_onnx(path, threads=1) as other:
        pair = measure_pair(lambda: one(inputs), lambda: other(inputs), turns=turns, contract={"batch": 1})
    return {"ratio": pair.ratio, "low": pair.low, "high": pair.high, "blocks": pair.blocks, "verdict": pair.verdict}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
