"""The facts that an entry of the ledger is known by: what can change a result is among them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from soup.config import load_config
from soup.files import canonical_json
from soup.keys import run_facts
from soup.provenance import differences


def facts(project: Path, *overrides: str) -> dict[str, object]:
    return run_facts(load_config(project / "val.yaml", overrides=overrides), {}, device="cpu")


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("model_args.num_classes=11", "model_args.num_classes"),
        ("preprocess.mean=[0.31]", "preprocess.mean"),
        ("preprocess.interpolation=bicubic", "preprocess.interpolation"),
        ("checkpoints.dtype=float16", "checkpoints.dtype"),
        ("checkpoints.use=raw", "checkpoints.use"),
    ],
)
def test_what_changes_a_result_is_a_fact(small: Path, option: str, changed: str) -> None:
    (told,) = differences(facts(small, "model_args.num_classes=10"), facts(small, "model_args.num_classes=10", option))
    assert told.startswith(f"{changed} was ")


@pytest.mark.parametrize(
    "option",
    [
        "search={methods: [pruned], min_gain: 0.1, confidence: 0.9, early_stop: false}", "gates={gain: {min: 1}}",
        "export={batch: 8}", "release.golden.count=1", "quantization.samples=100", "data.cache={max_gb: 1}",
        "explain.line=0", "data.max_overlap=1", "checkpoints.files=[runs/epoch-3.pt]", "data.test=null",
    ],
)  # fmt: skip
def test_what_only_chooses_or_judges_is_none(small: Path, option: str) -> None:
    assert facts(small, option) == facts(small)


def test_facts_are_json_and_name_no_folder_of_this_machine(small: Path) -> None:
    assert str(small).encode() not in canonical_json(facts(small))
    assert list(facts(small)["code"]) == ["models.py"]  # type: ignore[call-overload]


def test_a_loader_of_the_users_own_is_code_and_a_file_of_images_is_none(small: Path) -> None:
    (small / "data.py").write_text("import own_tables\n\n\ndef val():\n    return own_tables.arrays()\n")
    (small / "own_tables.py").write_text("def arrays():\n    return {}\n")
    assert set(facts(small, "data.val=./data.py:val")["code"]) == {"data.py", "models.py", "own_tables.py"}  # type: ignore[call-overload]
    (small / "val.npz").rename(small / "val:one.npz")
    assert facts(small, "data.val='val:one.npz'") == facts(small)


def test_a_network_of_torchvision_is_known_by_its_version(small: Path) -> None:
    told = run_facts(load_config(small / "val.yaml", overrides=["model=torchvision:resnet18"]), {}, device="cpu")
    assert told["code"] == {}
    assert "torchvision" in told["machine"]["versions"]  # type: ignore[index]
