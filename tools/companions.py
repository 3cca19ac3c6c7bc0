"""Try what the companions say on the tools that they are for, where pip can install those: `make companions`.

config.pbtxt is parsed by Triton's own protobuf schema, the polygraphy line by polygraphy's own parser (which writes the
script that it would run) and run on ONNX Runtime, the Gst-nvinfer file as a key file against NVIDIA's list of keys.
trtexec is in no registry that pip reaches: its line is only printed, or run with --help where it is on PATH. Exit 1
where something was refused. Needs the network, once.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from exporters.companions import (
    Model,
    Normalisation,
    TrtexecOptions,
    nvinfer_config,
    polygraphy_line,
    triton_config,
    trtexec_line,
)
from exporters.runtimes import TensorInfo
from exporters.targets import TARGETS, Target

PACKAGES = ("polygraphy", "tritonclient", "protobuf", "grpcio", "onnx", "onnxruntime", "numpy")
CLASSIC = tuple(TARGETS[name] for name in ("jetson-xavier-jp5.1", "jetson-orin-jp6.0", "jetson-orin-jp6.2", "h100"))
OPTIONS = TrtexecOptions(
    workspace_mb=256,
    optimization_level=3,
    version_compatible=True,
    hardware_compatibility="ampere_plus",
    timing_cache="timing.cache",
)
# The group [property] for a classifier, by gstnvinfer_property_parser.h of the DeepStream SDK (its API reference).
NVINFER_KEYS = {
    "gpu-id", "gie-unique-id", "process-mode", "interval", "labelfile-path", "enable-dla", "use-dla-core",
    "batch-size", "network-mode", "model-engine-file", "int8-calib-file", "workspace-size", "output-blob-names",
    "network-type", "infer-dims", "model-color-format", "net-scale-factor", "offsets", "mean-file",
    "maintain-aspect-ratio", "symmetric-padding", "scaling-filter", "scaling-compute-hw", "network-input-order",
    "input-tensor-from-meta", "custom-lib-path", "parse-classifier-func-name", "onnx-file", "classifier-type",
    "classifier-threshold", "classifier-async-mode", "output-tensor-meta", "secondary-reinfer-interval",
}  # fmt: skip
PARSE_CONFIG = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(sys.stdin.read(), model_config_pb2.ModelConfig())
print(config.platform, "max_batch_size", config.max_batch_size, [list(one.dims) for one in config.input])
"""


def main() -> int:
    """Print a line for each thing tried; 1 where one was refused."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        python = install(scratch)
        models = [write_model(scratch, batch) for batch in (2, "batch")]
        checks: list[Callable[[], list[str]]] = [
            *(lambda model=model: check_triton(python, model) for model in models),
            *(lambda model=model: check_nvinfer(model) for model in models),
            *(
                lambda m=m, t=t: check_polygraphy(scratch, m, t)
                for m in models
                for t in (*CLASSIC, TARGETS["rtx-4060"])
            ),
            *(lambda model=model: run_polygraphy(scratch, model) for model in models),
            *(
                lambda model=model, target=target: check_trtexec(model, target)
                for model in models
                for target in CLASSIC
            ),
        ]
        refused = [line for check in checks for line in check()]
    say(f"{len(refused)} refused" if refused else "nothing was refused")
    return 1 if refused else 0


def install(scratch: Path) -> Path:
    """A fresh environment with the tools; its python."""
    subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], check=True)
    python = scratch / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def write_model(scratch: Path, batch: int | str) -> Model:
    """A small classifier of pictures, with everything that the companions say about it."""
    name = f"net-{batch}.onnx"
    weights = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["output"])],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 5])],
        [from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), scratch / name)
    return Model(
        onnx=name,
        engine=f"net-{batch}.engine",
        inputs=(TensorInfo("input", "float32", (batch, 3, 4, 4)),),
        outputs=(TensorInfo("output", "float32", (batch, 5)),),
        profiles=((batch, batch, batch),) if isinstance(batch, int) else ((1, 2, 4), (4, 8, 16)),
        precision="fp16",
    )


def check_triton(python: Path, model: Model) -> list[str]:
    """config.pbtxt of both platforms, by Triton's own schema."""
    refused = []
    for platform in ("tensorrt_plan", "onnxruntime_onnx"):
        text = triton_config(model, name="net", platform=platform)
        done = subprocess.run([python, "-c", PARSE_CONFIG], input=text, capture_output=True, text=True, check=False)
        refused += report(f"config.pbtxt, {model.onnx}, {platform}", done.returncode == 0, done.stdout or done.stderr)
    return refused


def check_nvinfer(model: Model) -> list[str]:
    """The key file by GLib's rules as far as configparser has them, its keys by NVIDIA's list."""
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    text = nvinfer_config(model, normalisation, labels="labels.txt", threshold=0.2, dla_core=0)
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.read_string(text)
    unknown = sorted(set(parser["property"]) - NVINFER_KEYS)
    return report(f"nvinfer, {model.onnx}", not unknown, f"unknown keys {unknown}" if unknown else "all keys known")


def check_polygraphy(scratch: Path, model: Model, target: Target) -> list[str]:
    """polygraphy's parser takes the whole line: instead of running it writes the script that it would run."""
    done = polygraphy(scratch, [*words(model, target), "--gen-script", "script.py"])
    written = (scratch / "script.py").is_file()
    (scratch / "script.py").unlink(missing_ok=True)
    return report(f"polygraphy line, {model.onnx}, {target.name}", done.returncode == 0 and written, done.stderr)


def run_polygraphy(scratch: Path, model: Model) -> list[str]:
    """The part of the line that needs no GPU, run: ONNX Runtime on polygraphy's inputs."""
    line = words(replace(model, profiles=model.profiles[:1]), CLASSIC[2])
    kept = [word for word in line if word not in {"--trt", "--strongly-typed"}]
    done = polygraphy(scratch, kept[: kept.index("--pool-limit")])
    return report(f"polygraphy run --onnxrt, {model.onnx}", done.returncode == 0, done.stderr or done.stdout)


def words(model: Model, target: Target) -> list[str]:
    """The polygraphy line as words, without the setting before it."""
    found = shlex.split(polygraphy_line(model, target, atol=1e-3, rtol=1e-3, options=OPTIONS))
    return found[found.index("polygraphy") :]


def polygraphy(scratch: Path, line: list[str]) -> subprocess.CompletedProcess[str]:
    """Run it in the scratch environment."""
    program = scratch / "venv" / "bin" / "polygraphy"
    return subprocess.run(
        [program, *line[1:]], cwd=scratch, capture_output=True, text=True, check=False, env=os.environ
    )


def check_trtexec(model: Model, target: Target) -> list[str]:
    """Every option of the line is in `trtexec --help`, where a trtexec of that version is on PATH."""
    line = trtexec_line(model, target, options=OPTIONS)
    program = shutil.which("trtexec")
    if program is None:
        say(
            f"not checked: trtexec is not on PATH (no pip package has it); its line for {target.name}:\n{line}".rstrip()
        )
        return []
    listed = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    unknown = [flag for flag in re.findall(r"--[A-Za-z]+", line.splitlines()[-1]) if flag not in listed]
    return report(f"trtexec line, {model.onnx}, {target.name}", not unknown, f"not in its help: {unknown}")


def report(what: str, accepted: bool, said: str) -> list[str]:
    """Print the verdict; what was refused comes back."""
    last = (said.strip().splitlines() or [""])[-1]
    say(f"{'accepted' if accepted else 'REFUSED'}: {what}{f' ({last})' if last else ''}")
    return [] if accepted else [what]


def say(line: str) -> None:
    """One line for the terminal."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
