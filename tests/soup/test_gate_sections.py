"""`gates:` as it is written: one rule or several, limits that limit something, and who needs a baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from soup import SoupError
from soup.config import Config, apply_overrides, load_config, resolved
from soup.gate_sections import AccuracyGate, Gates

MINIMAL = "model: ./models.py:build\ncheckpoints: ['runs/*.pt']\ndata: {train: t, val: v}\n"


def load(folder: Path, gates: str, *overrides: str) -> Config:
    (folder / "val.yaml").write_text(f"{MINIMAL}gates: {gates}\n")
    return load_config(folder / "val.yaml", overrides=overrides, environment={})


def test_a_rule_by_itself_is_a_list_of_one_and_is_written_as_it_was_read(tmp_path: Path) -> None:
    config = load(tmp_path, "{accuracy: {max_drop: 0.01}}")
    assert config.gates.accuracy == (AccuracyGate(max_drop=0.01),)
    written = resolved(config)
    assert Config.model_validate(written).gates == config.gates
    changed = apply_overrides(written, ["gates.accuracy.against=soup"], folder=tmp_path)
    assert changed.gates.accuracy == (AccuracyGate(max_drop=0.01, against="soup"),)


def test_several_rules_are_a_list(tmp_path: Path) -> None:
    config = load(tmp_path, "{accuracy: [{max_drop: 0.01}, {max_drop_relative: 0.02, against: baseline}]}")
    assert [rule.against for rule in config.gates.accuracy] == ["best_single", "baseline"]
    assert Config.model_validate(resolved(config)).gates == config.gates


def test_the_schema_takes_one_rule_and_several() -> None:
    for mode in ("validation", "serialization"):
        validator = Draft202012Validator(Gates.model_json_schema(mode=mode))  # type: ignore[arg-type]
        rule = {"max_drop": 0.1}
        for accuracy in (rule, [rule, {"max_drop_relative": 0.1, "against": "soup"}], None):
            assert validator.is_valid({"accuracy": accuracy})
        assert not validator.is_valid({"accuracy": {"max_drop": "0.1"}})
        assert not validator.is_valid({"accuracy": [{"max_drop": 0.1, "colour": "red"}]})


@pytest.mark.parametrize(
    ("gates", "complaint"),
    [
        ("{accuracy: {against: soup}}", "gates.accuracy: limits nothing. Give max_drop or max_drop_relative."),
        ("{accuracy: {max_drop: 0.1, foo: 1}}", "gates.accuracy.foo: unknown key. Known here: max_drop, "),
        ("{accuracy: [{max_drop: x}]}", "gates.accuracy[0].max_drop: expected a number, got 'x'. Meaning: the largest"),
        ("{accuracy: 0.01}", "gates.accuracy: expected a list, got 0.01"),
        ("{flips: {against: soup}}", "gates.flips: limits nothing. Give max_share or max_count."),
        ("{flips: {max_count: -1}}", "gates.flips.max_count: expected 0 or more, got -1"),
        ("{flips: {max_count: 1, against: best_single}}", "gates.flips.against: expected 'soup' or 'baseline', got"),
        ("{outputs: {}}", "gates.outputs: limits nothing. Give max_error or cosine."),
        ("{outputs: {cosine: 1.5}}", "gates.outputs.cosine: expected 1 or less, got 1.5"),
        ("{memory: {}}", "gates.memory: limits nothing. Give max_mb or build_max_mb."),
        ("{per_class_drop: {max_drop: 0.1, min_images: 0}}", "gates.per_class_drop.min_images: expected 1 or more"),
        ("{throughput: {min_per_s: 30}}", "gates.throughput.runtime: is missing."),
        ("{dla_share: {min: 90}}", "gates.dla_share.min: expected 1 or less, got 90"),
        ("{latency: {runtime: onnxruntime, device: cpu}}", "gates.latency: limits nothing. Give p50_ms, p90_ms, "),
    ],
)
def test_what_limits_nothing_or_is_no_limit_is_refused(tmp_path: Path, gates: str, complaint: str) -> None:
    with pytest.raises(SoupError) as caught:
        load(tmp_path, gates)
    assert complaint in str(caught.value)


def test_the_gates_that_need_a_baseline_are_named_by_key(tmp_path: Path) -> None:
    assert load(tmp_path, "{accuracy: {max_drop: 0.1}, flips: {max_count: 3}}").gates.against_baseline == ()
    text = """
  accuracy: [{max_drop: 0.1}, {max_drop: 0.1, against: baseline}]
  per_class_drop: {max_drop: 0.1, against: baseline}
  flips: {max_count: 3, against: baseline}
  outputs: {cosine: 0.9, against: baseline}
  latency: {relative: {max_ratio: 1.05, against: baseline}, runtime: tensorrt, device: orin}"""
    assert load(tmp_path, text).gates.against_baseline == (
        "gates.accuracy[1]", "gates.per_class_drop", "gates.flips", "gates.outputs", "gates.latency.relative",
    )  # fmt: skip
    assert load(tmp_path, "{accuracy: {max_drop: 0.1, against: baseline}}").gates.against_baseline == (
        "gates.accuracy",
    )
