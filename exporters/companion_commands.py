"""The command lines of trtexec and polygraphy that build, time and compare what a release holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from exporters.precision import Precision
from exporters.runtimes import TensorInfo
from exporters.targets import Target

Batches = tuple[int, int, int]  # min, opt, max
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

# The TensorRT that first had an option of trtexec (its --help and NVIDIA's release notes; the enums in our table of
# names agree). What an older one lacks is left out, and a comment line says so.
_SINCE = {
    "--builderOptimizationLevel": (8, 6),
    "--versionCompatible": (8, 6),
    "--hardwareCompatibilityLevel": (8, 6),
    "--stripWeights": (10, 0),
}
_SAME_CAPABILITY_SINCE = (10, 4)  # absent in 10.3, there in 10.13


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX file that is to run elsewhere: paths as the reader's working folder has them.

    `profiles` are the batches (min, opt, max) that it is tuned for; the first axis of a tensor is the batch, a name
    where it is dynamic. `rest` is what the layers outside INT8 compute in.
    """

    onnx: str
    engine: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[Batches, ...]
    precision: Precision = "fp32"
    rest: Precision = "fp32"

    @property
    def dynamic(self) -> bool:
        """Whether the batch is free."""
        return any(isinstance(tensor.shape[0], str) for tensor in self.inputs if tensor.shape)


@dataclass(frozen=True, slots=True)
class TrtexecOptions:
    """How the engine is built and timed; the defaults are trtexec's own where it has the same on every version.

    The three of timing are always written out, since trtexec 11 turned them round: `transfers` counts the copies to and
    from the GPU, `cuda_graph` and `spin_wait` are how the call is launched and awaited.
    """

    workspace_mb: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    refit: bool = False
    strip_weights: bool = False
    timing_cache: str | None = None
    dla_core: int | None = None
    calibration_cache: str | None = None
    transfers: bool = True
    cuda_graph: bool = False
    spin_wait: bool = False


def trtexec_line(model: Model, target: Target, *, options: TrtexecOptions | None = None) -> str:
    """The trtexec command that builds and times the same engine with that target's TensorRT, as a shell line.

    Comment lines before it name what is asked and its version lacks. Options: `trtexec --help` of each version, and
    https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-trtexec.html.
    """
    options = options or TrtexecOptions()
    wanted = [*_build_options(options), *_dla_options(options)]
    lacking = [option for option in wanted if not _has(target, option)]
    arguments = [
        f"--onnx={model.onnx}",
        f"--saveEngine={model.engine}",
        *precision_flags(model, target, options=options),
        *shape_flags(model, target),
        *(option for option in wanted if option not in lacking),
        *timing_flags(target, transfers=options.transfers, cuda_graph=options.cuda_graph, spin_wait=options.spin_wait),
    ]
    comments = [f"# left out, TensorRT {target.tensorrt} has no {option}" for option in lacking]
    tool = "tensorrt_rtx" if target.runtime == "tensorrt_rtx" else "trtexec"
    return "\n".join([*comments, shlex.join([tool, *arguments])]) + "\n"


def precision_flags(model: Model, target: Target, *, options: TrtexecOptions | None = None) -> tuple[str, ...]:
    """What tells trtexec the precision: flags below TensorRT 10, strong typing on 10, nothing on 11 and for RTX.

    INT8 on a DLA from a calibration cache needs the flags on 10, too.
    """
    cache = options.calibration_cache if options is not None else None
    if cache is None and target.typed:
        return ("--stronglyTyped",) if target.version < (11,) and target.runtime == "tensorrt" else ()
    computes = {model.precision, model.rest} if model.precision == "int8" else {model.precision}
    flags = [f"--{name}" for name in ("fp16", "int8") if name in computes]
    return (*flags, f"--calib={cache}") if cache is not None else tuple(flags)


def shape_flags(model: Model, target: Target) -> tuple[str, ...]:
    """The profiles of a dynamic batch, and the shape that is timed; nothing for a static one, which takes none.

    trtexec knows one profile before TensorRT 10: the widest range around the first profile's best batch.
    """
    if not model.dynamic:
        return ()
    profiles = model.profiles if target.typed else (widest(model.profiles),)
    flags: list[str] = []
    for index, (least, best, most) in enumerate(profiles):
        flags += [f"--profile={index}"] if len(profiles) > 1 else []
        named = (("min", least), ("opt", best), ("max", most))
        flags += [f"--{name}Shapes={_trtexec_shapes(model, batch)}" for name, batch in named]
    return (*flags, f"--shapes={_trtexec_shapes(model, profiles[0][1])}")


def timing_flags(target: Target, *, transfers: bool, cuda_graph: bool, spin_wait: bool) -> tuple[str, ...]:
    """The flags that give a timing the same meaning on every trtexec; 11 (as tensorrt_rtx) turned its defaults round.

    Until 10 trtexec copies, launches without a graph and blocks; from 11 it leaves the copies out, captures and spins.
    """
    if target.version >= (11,) or target.runtime == "tensorrt_rtx":
        asked = (
            (transfers, "--includeDataTransfers"),
            (not cuda_graph, "--noCudaGraph"),
            (not spin_wait, "--noSpinWait"),
        )
    else:
        asked = ((not transfers, "--noDataTransfers"), (cuda_graph, "--useCudaGraph"), (spin_wait, "--useSpinWait"))
    return tuple(flag for wanted, flag in asked if wanted)


def polygraphy_line(
    model: Model, target: Target, *, atol: float, rtol: float, options: TrtexecOptions | None = None
) -> str:
    """The polygraphy command that builds with TensorRT and compares with ONNX Runtime on random inputs.

    It passes where each element is within `atol` or within `rtol` of the reference (its elementwise check).
    """
    options = options or TrtexecOptions()
    arguments = ["polygraphy", "run", model.onnx, "--trt", "--onnxrt", *_polygraphy_precision(model, target, options)]
    if model.dynamic:
        for profile in model.profiles:
            for name, batch in zip(("min", "opt", "max"), profile, strict=True):
                arguments += [f"--trt-{name}-shapes", *_polygraphy_shapes(model, batch)]
        arguments += ["--input-shapes", *_polygraphy_shapes(model, model.profiles[0][1])]
    arguments += [*_polygraphy_options(options), "--save-engine", model.engine]
    whole = [f"{tensor.name}:[0,255]" for tensor in model.inputs if tensor.dtype == "uint8"]
    arguments += ["--val-range", *whole] if whole else []
    which = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if target.runtime == "tensorrt_rtx" else ""
    return which + shlex.join([*arguments, "--atol", f"{atol:g}", "--rtol", f"{rtol:g}"]) + "\n"


def _build_options(options: TrtexecOptions) -> list[str]:
    level = options.hardware_compatibility
    names = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
    return [
        *([f"--memPoolSize=workspace:{options.workspace_mb}"] if options.workspace_mb is not None else []),
        *(
            [f"--builderOptimizationLevel={options.optimization_level}"]
            if options.optimization_level is not None
            else []
        ),
        *(["--versionCompatible"] if options.version_compatible else []),
        *([f"--hardwareCompatibilityLevel={names[level]}"] if level != "none" else []),
        *(["--refit"] if options.refit else []),
        *(["--stripWeights"] if options.strip_weights else []),
        *([f"--timingCacheFile={options.timing_cache}"] if options.timing_cache is not None else []),
    ]


def _dla_options(options: TrtexecOptions) -> list[str]:
    return [] if options.dla_core is None else [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]


def _has(target: Target, option: str) -> bool:
    name, _, value = option.partition("=")
    since = _SAME_CAPABILITY_SINCE if value == "sameComputeCapability" else _SINCE.get(name, (0,))
    return target.runtime == "tensorrt_rtx" or target.version >= since


def widest(profiles: Sequence[Batches]) -> Batches:
    """One range around all: the least, the first one's best, the most."""
    return min(one[0] for one in profiles), profiles[0][1], max(one[2] for one in profiles)


def _trtexec_shapes(model: Model, batch: int) -> str:
    return ",".join(
        f"{_quoted(tensor.name)}:{'x'.join(map(str, _with_batch(tensor, batch)))}" for tensor in model.inputs
    )


def _quoted(name: str) -> str:
    """trtexec's own quotes, for a name that holds what separates names from shapes."""
    return f"'{name}'" if ":" in name or "," in name else name


def _with_batch(tensor: TensorInfo, batch: int) -> tuple[int | str, ...]:
    return (batch, *tensor.shape[1:])


def _polygraphy_shapes(model: Model, batch: int) -> list[str]:
    return [f"{tensor.name}:[{','.join(map(str, _with_batch(tensor, batch)))}]" for tensor in model.inputs]


def _polygraphy_precision(model: Model, target: Target, options: TrtexecOptions) -> list[str]:
    if target.typed and options.calibration_cache is None:
        return ["--strongly-typed"]
    flags = [flag for flag in precision_flags(model, target, options=options) if not flag.startswith("--calib")]
    cache = options.calibration_cache
    return [*flags, *(["--calibration-cache", cache] if cache is not None else [])]


def _polygraphy_options(options: TrtexecOptions) -> list[str]:
    level, cache = options.hardware_compatibility, options.timing_cache
    effort = options.optimization_level
    return [
        *(["--pool-limit", f"workspace:{options.workspace_mb}M"] if options.workspace_mb is not None else []),
        *(["--builder-optimization-level", str(effort)] if effort is not None else []),
        *(["--version-compatible"] if options.version_compatible else []),
        *(["--hardware-compatibility-level", level] if level != "none" else []),
        *(["--load-timing-cache", cache, "--save-timing-cache", cache] if cache is not None else []),
        *(["--use-dla", "--allow-gpu-fallback"] if options.dla_core is not None else []),
    ]
