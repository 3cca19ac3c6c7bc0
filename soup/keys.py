"""All that a result depends on beside weights, statistics and samples: what an entry of the ledger is known by."""

from __future__ import annotations

from soup.callables import resolve
from soup.config import Config
from soup.decoded import FORMAT
from soup.larder import is_code, preprocess_of
from soup.preprocess import backend_version
from soup.provenance import code_facts, machine_facts
from soup.tasks import Settings


def run_facts(config: Config, settings: Settings, *, device: str) -> dict[str, object]:
    """Facts of this configuration on this machine, as JSON can hold them; the callables must have been resolved."""
    splits = (config.data.train, config.data.val, config.data.test)
    specs = [spec for spec in splits if isinstance(spec, str) and is_code(config, spec)]
    if config.model.partition(":")[0] not in ("torchvision", "timm"):
        specs.append(config.model)
    specs += [spec for spec in (config.detection.adapter, config.metric) if spec and ":" in spec]
    callables = [resolve(spec, folder=config.folder) for spec in specs]
    preprocess = preprocess_of(config)
    return {
        "model": config.model,
        "model_args": dict(config.model_args),
        "code": code_facts(callables, folder=config.folder),
        "machine": machine_facts(),
        "task": config.task,
        "settings": dict(settings),
        "adapter": config.detection.model_dump(mode="json", include={"adapter", "adapter_args"}),
        "output": config.segmentation.output,
        "preprocess": None if config.preprocess is None else config.preprocess.facts,
        "image_library": None if preprocess is None else backend_version(preprocess.backend),
        "decoding": FORMAT,
        "checkpoints": {"dtype": config.checkpoints.dtype, "use": config.checkpoints.use},
        "device": device,
        "precision": "float32",
        "memory_format": "channels_last",
    }
