"""What other pipelines ask for beside a release: trtexec, polygraphy, DeepStream, Triton, and a shell check."""

from __future__ import annotations

from dataclasses import replace

from exporters import ExportError
from exporters.companions import (
    Model,
    Normalisation,
    TrtexecOptions,
    nvinfer_config,
    nvinfer_labels,
    nvinfer_obstacle,
    polygraphy_line,
    triton_config,
    trtexec_line,
)
from exporters.device_check import device_check_files
from exporters.runtimes import TensorInfo
from exporters.targets import Target, target_named
from soup.config import Config
from soup.export_proof import Job, Proved
from soup.files import write_file
from soup.proof import Artifact

Interface = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]  # inputs, outputs
FOLDER = "companions"
_BEGIN = '#!/bin/sh\ncd "$(dirname "$0")" || exit\n'
_BUILT = "/tmp/model.engine"  # what the two lines write: the release is sealed
_UNNAMED = "rtx-4060"  # whose TensorRT the lines are for where no target is named: tensorrt_rtx builds for all of them


def companions(job: Job, ships: Proved, interface: Interface) -> None:
    """Write them into the stage where an engine or a device is meant; what cannot be written is a note."""
    target = job.plan.target
    if not job.options.trt and target is None:
        return
    if job.plan.calibration_cache and ships.artifact.precision == "int8":
        job.findings.notes.append("no companions: INT8 for this DLA is built from ranges, by soup verify --finish")
        return
    artifact = ships.artifact
    made = _files(job, artifact, interface, target=target or target_named(_UNNAMED))
    written = {f"{FOLDER}/{name}": text.encode() for name, text in made.items()}
    if job.plan.built == "trtexec" and target is not None:
        written |= device_check_files(
            ships.inputs, ships.golden,
            model=_model(job.source.config, artifact, interface, beside=""),
            onnx_sha256=artifact.sha256, tolerance=artifact.tolerance, target=target,
        )  # fmt: skip
    for name, content in written.items():
        (job.stage / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(job.stage / name, content)
        if content.startswith(b"#!"):
            (job.stage / name).chmod(0o755)


def _files(job: Job, artifact: Artifact, interface: Interface, *, target: Target) -> dict[str, str]:
    config, classes = job.source.config, job.source.val.class_names
    model, options, limit = _model(config, artifact, interface), _options(config), artifact.tolerance
    built = replace(model, engine=_BUILT)  # never over the sealed one
    files = {
        "trtexec.sh": f"{_BEGIN}{trtexec_line(built, target, options=options)}",
        "polygraphy.sh": f"{_BEGIN}{polygraphy_line(built, target, atol=limit, rtol=limit, options=options)}",
    }
    try:
        files["config.pbtxt"] = triton_config(model, name="model", platform="tensorrt_plan")
        normalisation = _normalisation(config)
        if config.task != "classification":
            what = "boxes" if config.task == "detection" else "masks"
            job.findings.notes.append(f"no DeepStream nvinfer config: {what} need a parser of your own there")
        elif obstacle := nvinfer_obstacle(model, normalisation):
            job.findings.notes.append(f"no DeepStream nvinfer config: {obstacle}")
        else:
            named = classes or tuple(f"class {index}" for index in range(int(model.outputs[0].shape[-1])))
            files["labels.txt"] = nvinfer_labels(named)
            files["nvinfer.txt"] = nvinfer_config(model, normalisation, labels="labels.txt", dla_core=options.dla_core)
    except ExportError as error:
        job.findings.notes.append(str(error))
    return files


def _model(config: Config, artifact: Artifact, interface: Interface, *, beside: str = "../") -> Model:
    """The graph that ships, as a reader in `companions/` names it."""
    batch = artifact.batch
    profiles = tuple((one.min, one.opt, one.max) for one in config.export.profiles)
    whole = (batch, batch, batch) if isinstance(batch, int) else batch
    return Model(
        f"{beside}{artifact.file}", f"{beside}model.engine", *interface, profiles or (whole,), artifact.precision,
        config.quantization.rest,
    )  # fmt: skip


def _options(config: Config) -> TrtexecOptions:
    engine = config.export.engine
    return TrtexecOptions(
        workspace_mb=engine.workspace_mb, optimization_level=engine.optimization_level,
        version_compatible=engine.version_compatible, hardware_compatibility=engine.hardware_compatibility,
        refit=engine.refit, strip_weights=engine.strip_weights,
        dla_core=engine.dla_core,
    )  # fmt: skip


def _normalisation(config: Config) -> Normalisation | None:
    preprocess = config.preprocess
    return None if preprocess is None else Normalisation(preprocess.mean, preprocess.std, preprocess.color)
