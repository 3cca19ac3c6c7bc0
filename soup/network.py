"""The network of val.yaml as it answers: built, and with its raw outputs decoded as the task has them."""

from __future__ import annotations

from torch import nn

from soup.adapters import adapt
from soup.adapters.segmentation import adapt_segmentation
from soup.config import Config
from soup.models import build_model


def network_of(config: Config) -> nn.Module:
    """In evaluation mode, with weights of no meaning yet; its tensors have the names of its checkpoints.

    Detection gives boxes and scores, segmentation one output. Raises SoupError where it cannot be built or decoded.
    """
    return adapted(config, build_model(config.model, config.model_args, folder=config.folder))


def adapted(config: Config, model: nn.Module) -> nn.Module:
    """A raw network with the adapter of val.yaml, in place."""
    if config.task == "detection":
        section = config.detection
        return adapt(model, section.adapter or "torchvision", section.adapter_args, folder=config.folder)
    if config.task == "segmentation":
        return adapt_segmentation(model, output=config.segmentation.output)
    return model
