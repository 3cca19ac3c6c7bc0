"""A device by name decides the opset, the precisions of the default, and where the engine is built, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters import ExportError
from exporters.gpu import find_gpu
from soup.config import Config, load_config
from soup.target_plan import engine_settings, plan_for

MINIMAL = "model: ./models.py:build\ncheckpoints: ['*.pt']\ndata: {train: train, val: val}\n"


def config(folder: Path, *overrides: str) -> Config:
    (folder / "val.yaml").write_text(MINIMAL)
    return load_config(folder / "val.yaml", overrides=overrides)


def test_without_a_target_the_engine_is_built_here_and_fp16_is_preferred(tmp_path: Path) -> None:
    plan = plan_for(config(tmp_path), engine=True)
    assert (plan.target, plan.opset, plan.precisions, plan.built) == (None, 18, ("fp16", "fp32"), "here")
    assert plan_for(config(tmp_path), engine=False).precisions == ("fp32",)


def test_a_jetson_s_engine_is_built_on_it_and_its_opset_is_kept_to(tmp_path: Path) -> None:
    plan = plan_for(config(tmp_path, "export.target=jetson-orin-jp6.0"), engine=True)
    assert (plan.opset, plan.built) == (17, "device")


@pytest.mark.skipif(find_gpu() is not None, reason="with a GPU other engines are built here")
def test_an_rtx_engine_is_built_ahead_of_time_for_its_own_gpu(tmp_path: Path) -> None:
    plan = plan_for(config(tmp_path, "export.target=rtx-4060"), engine=True)
    assert plan.built == "ahead"
    assert plan.capabilities(()) == ("8.9",)
    assert plan.capabilities(("8.6",)) == ("8.6",)


def test_of_the_default_only_what_the_device_has_is_tried(tmp_path: Path) -> None:
    """TensorRT for RTX builds no FP32 for compute capability 7.5 (tensorrt.md); asked for, it is refused."""
    assert plan_for(config(tmp_path, "export.target=rtx-2080"), engine=True).precisions == ("fp16",)
    with pytest.raises(ExportError, match="fp32") as caught:
        plan_for(config(tmp_path, "export.target=rtx-2080", "export.precision=[fp32]"), engine=True)
    assert caught.value.kind == "environment"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("export.target=rtx-4061",), "rtx-4060"),
        (("export.target=jetson-xavier-jp5.1",), "Leave the engine out"),
        (("export.target=jetson-orin-nano-jp6.2", "export.engine.dla_core=0"), "Leave export.engine.dla_core out"),
    ],
)
def test_what_a_target_cannot_do_is_told_before_any_work(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        plan_for(config(tmp_path, *overrides), engine=True)
    assert caught.value.kind == "environment"


def test_int8_reaches_an_old_dla_as_ranges(tmp_path: Path) -> None:
    asked = ("export.target=jetson-agx-orin-jp6.2", "export.engine.dla_core=0", "export.precision=[int8]")
    plan = plan_for(config(tmp_path, *asked), engine=True)
    assert plan.calibration_cache


def test_the_engine_section_is_what_the_builder_gets(tmp_path: Path) -> None:
    asked = "export.engine={workspace_mb: 64, optimization_level: 2, refit: true, hardware_compatibility: ampere_plus}"
    loaded = config(tmp_path, asked)
    settings = engine_settings(loaded, plan_for(loaded, engine=True), capabilities=("8.6",))
    assert settings.workspace_bytes == 64 << 20
    assert (settings.optimization_level, settings.refit, settings.hardware) == (2, True, "ampere_plus")
    assert settings.compute_capabilities == ("8.6",)
