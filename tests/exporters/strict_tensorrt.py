"""A TensorRT that is not there, as strict as its wheel: no name that the version has not, of what the table holds.

It builds nothing. It keeps what it was told, so that a test can see which calls the builder makes on which version.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

from exporters.onnx_types import nodes

STORED: dict[str, Any] = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
PUBLISHED = {"8.6": "8.6.1", "10.3": "10.3.0", "10.13": "10.13.3.9", "11.4": "11.4.0.106"}
ENUMS = ("BuilderFlag", "DataType", "DeviceType", "HardwareCompatibilityLevel", "LayerInformationFormat", "LayerType",
         "MemoryPoolType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity")  # fmt: skip


class Told:
    """What the builder was told, and what it is to answer."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.flags: set[str] = set()
        self.network_flags = 0
        self.config: dict[str, Any] = {}
        self.types: dict[str, set[str]] = {}
        self.profiles: list[dict[str, Any]] = []
        self.workspace: int | None = None
        self.corners: list[tuple[int, str, tuple[int, ...]]] = []
        self.cores = 2
        self.log: list[str] = []  # said while it builds
        self.cache_read: bytes | None = None
        self.cache_complaint = ""
        self.refused_corner: tuple[int, ...] | None = None
        self.parse_failure: dict[str, Any] | None = None
        self.inspector = json.dumps({"Layers": [
            {"Name": "conv0 + activation0", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv0]",
             "Inputs": [{"Name": "input", "Dimensions": [1, 3, 16, 16], "Format/Datatype": "Row major linear FP32"}],
             "Outputs": [{"Name": "out", "Dimensions": [1, 4, 16, 16], "Format/Datatype": "Row major linear FP32"}]},
        ]})  # fmt: skip


def strict_tensorrt(told: Told) -> types.ModuleType:
    """The module, for sys.modules["tensorrt"]."""
    names = STORED[told.version]["names"]
    module = types.ModuleType("tensorrt")
    module.__version__ = PUBLISHED[told.version]  # type: ignore[attr-defined]
    for owner in ENUMS:
        if owner in names:
            setattr(module, owner, enum.IntEnum(owner, {n: i for i, n in enumerate(names[owner]) if n.isupper()}))
    for cls in classes(told, module):
        if cls.__name__ in names:
            setattr(module, cls.__name__, strict(cls, set(names[cls.__name__])))
    return module


def strict(cls: type, names: set[str]) -> type:
    """The class without members that the version has not; others cannot be set from outside."""
    members = {name: item for name, item in vars(cls).items() if name.startswith("_") or name in names}
    members.pop("__dict__", None)
    members.pop("__weakref__", None)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in names and type(self).__name__ == cls.__name__:
            raise AttributeError(f"{cls.__name__} has no {name}")
        object.__setattr__(self, name, value)

    return type(cls.__name__, (), {**members, "__setattr__": set_attribute})


def classes(told: Told, module: Any) -> list[type]:
    """Every class that a build touches, with all that any version has; a test breaks where one is too few."""

    class ILogger:
        def __init__(self) -> None:
            pass

    class IInt8EntropyCalibrator2:
        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class ITensor:
        def __init__(self, name: str) -> None:
            self._name = name

        name = property(lambda self: self._name)

    class ILayer:
        def __init__(self, name: str, outputs: tuple[str, ...]) -> None:
            self._name, self._outputs = name, outputs

        name = property(lambda self: self._name)
        type = property(lambda self: module.LayerType.CONVOLUTION)
        num_outputs = property(lambda self: len(self._outputs))

        def get_output(self, index: int) -> Any:
            return module.ITensor(self._outputs[index])

        precision = property(None, lambda self, dtype: told.types.setdefault(self._name, set()).add(dtype.name))

        def set_output_type(self, index: int, dtype: Any) -> None:
            told.types.setdefault(self._name, set()).add(f"{index}:{dtype.name}")

    class INetworkDefinition:
        def __init__(self) -> None:
            self._layers: list[Any] = []

        num_layers = property(lambda self: len(self._layers))
        num_outputs = property(lambda self: 1)

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

    class ParserError:
        def __init__(self) -> None:
            pass

        def desc(self) -> str:
            return str((told.parse_failure or {})["desc"])

        def node(self) -> int:
            return int((told.parse_failure or {})["node"])

        def node_name(self) -> str:
            return "told by its name"

        def node_operator(self) -> str:
            return "Relu"

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network

        num_errors = property(lambda self: 1)

        def parse(self, model: bytes) -> bool:
            self._network._layers += [module.ILayer(node.name, node.outputs) for node in nodes(model)]
            return told.parse_failure is None

        def get_error(self, index: int) -> Any:
            return module.ParserError()

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> Any:
            return self._content + b"+measured"

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, usual: Any, greatest: Any) -> None:
            self._shapes[name] = (least, usual, greatest)

        def get_shape(self, name: str) -> Any:
            return self._shapes[name]

    class IBuilderConfig:
        def __init__(self, logger: Any) -> None:
            self._logger, self._cache = logger, None

        def __setattr__(self, name: str, value: Any) -> None: ...

        def set_flag(self, flag: Any) -> None:
            told.flags.add(flag.name)

        def set_memory_pool_limit(self, pool: Any, size_bytes: int) -> None:
            told.workspace = size_bytes

        def add_optimization_profile(self, profile: Any) -> int:
            told.profiles.append(dict(profile._shapes))
            return len(told.profiles) - 1

        def create_timing_cache(self, content: bytes) -> Any:
            told.cache_read = content
            if told.cache_complaint:
                self._logger.log(types.SimpleNamespace(name="WARNING"), told.cache_complaint)
            return module.ITimingCache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        builder_optimization_level = property(None, lambda self, level: told.config.update(level=level))
        max_aux_streams = property(None, lambda self, count: told.config.update(aux=count))
        hardware_compatibility_level = property(None, lambda self, level: told.config.update(hardware=level.name))
        profiling_verbosity = property(None, lambda self, level: told.config.update(verbosity=level.name))
        progress_monitor = property(None, lambda self, monitor: told.config.update(monitor=monitor))
        int8_calibrator = property(None, lambda self, calibrator: told.config.update(calibrator=calibrator))
        default_device_type = property(None, lambda self, device: told.config.update(device=device.name))
        DLA_core = property(None, lambda self, core: told.config.update(core=core))

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        num_DLA_cores = property(lambda self: told.cores)  # noqa: N815

        def create_network(self, flags: int) -> Any:
            told.network_flags = flags
            return module.INetworkDefinition()

        def create_builder_config(self) -> Any:
            return module.IBuilderConfig(self._logger)

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            for line in told.log:
                self._logger.log(types.SimpleNamespace(name="INFO"), line)
            return memoryview(b"ftrt" + bytes(96))

    class EngineInspector:
        def __init__(self) -> None:
            pass

        def get_engine_information(self, form: Any) -> str:
            return told.inspector

    class IExecutionContext:
        def __init__(self) -> None:
            self._profile = -1

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self._profile = index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            told.corners.append((self._profile, name, shape))
            return shape != told.refused_corner

    class ICudaEngine:
        def __init__(self) -> None:
            pass

        def create_engine_inspector(self) -> Any:
            return module.EngineInspector()

        def create_execution_context(self) -> Any:
            return module.IExecutionContext()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        engine_host_code_allowed = property(None, lambda self, yes: told.config.update(host_code=yes))

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            return module.ICudaEngine()

    return [cls for cls in locals().values() if isinstance(cls, type)]
