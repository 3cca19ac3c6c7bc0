"""What val.yaml says of the search and of what is told about it, as frozen records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from soup.sections import AtLeastZero, Count, Flag, Number, Positive, Section, Whole, expects

METHODS = (
    "uniform", "greedy", "greedy_repeated", "pruned", "last_k", "ema", "wise_ft", "model_stock", "learned",
    "learned_layers", "ranked",
)  # fmt: skip
Method = Annotated[
    Literal[
        "uniform", "greedy", "greedy_repeated", "pruned", "last_k", "ema", "wise_ft", "model_stock", "learned",
        "learned_layers", "ranked",
    ],
    expects(f"one of {', '.join(METHODS)}"),
]  # fmt: skip


View = Annotated[Literal["flip"] | Annotated[Number, Field(gt=0, le=4)], expects("flip, or a scale as 1.25")]


class Budget(Section):
    """The most that `ranked` may spend."""

    evaluations: Count | None = None
    """soups that are scored"""
    minutes: Positive | None = None
    """time; the result then depends on the machine"""

    @model_validator(mode="after")
    def _one_of_both(self) -> Budget:
        if (self.evaluations is None) == (self.minutes is None):
            raise ValueError("expected evaluations or minutes, one of the two")
        return self


class Search(Section):
    """How the ingredients are chosen."""

    methods: tuple[Method, ...] = Field(default=("uniform", "greedy"), min_length=1)
    """soups that are tried beside the best single; the best on val wins, all are reported"""
    bn_policy: Annotated[
        Literal["recalibrated", "averaged"],
        expects("'recalibrated' or 'averaged' (singles are always scored with their own statistics)"),
    ] = "recalibrated"
    """BatchNorm statistics of candidates of two or more: measured again on data.train, or averaged like weights"""
    min_gain: AtLeastZero = 0
    """what an ingredient must add to the val score to stay; 0 keeps it where the score does not fall"""
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] | None = None
    """how sure a gain must be for an ingredient to stay, by a paired one-sided test; null asks for none"""
    budget: Budget | None = None
    """what `ranked` may spend: {evaluations: 20} or {minutes: 30}"""
    early_stop: Flag = True
    """whether a candidate stops as soon as it cannot reach what it must beat; never changes the result"""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """what candidates are scored in, as they will run: fp16 and int8 export and convert each of them"""
    backend: Literal["auto", "torch", "onnxruntime"] = "auto"
    """what evaluates candidates: onnxruntime where it is faster, with every close answer repeated in torch"""

    @field_validator("budget")
    @classmethod
    def _budget_is_for_ranked(cls, budget: Budget | None, info: ValidationInfo) -> Budget | None:
        methods = info.data.get("methods", ())
        if budget is not None and "ranked" not in methods:
            raise ValueError("only the method 'ranked' spends a budget. Add it to search.methods, or remove the budget")
        if budget is None and "ranked" in methods:
            raise ValueError("the method 'ranked' needs one. Give {evaluations: 20} or {minutes: 30}")
        return budget


class Explain(Section):
    """What the report tells beyond the search; each costs forward passes of its own, counted apart."""

    contributions: Flag = True
    """the soup without each of its ingredients in turn"""
    ensemble: Flag = True
    """the soup's ingredients asked together, as the upper reference: averaged class scores, or boxes fused; of
    detection also the model's own boxes thinned out in other ways"""
    views: tuple[View, ...] = ()
    """test-time augmentation beside the image itself, as a reference: flip, or scales as 0.8 and 1.25"""
    line: Annotated[Whole, Field(ge=0, le=50)] = 3
    """points between two ingredients on the straight line, for the picture and for barriers; 0 draws none"""
