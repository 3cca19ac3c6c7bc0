"""What runs the candidates, chosen once for a network and a machine; the ledger remembers it for the next build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from exporters.runtimes import Predict
from soup.backends import Backend, predict_with
from soup.ledger import Key, Ledger
from soup.tasks import Metric
from soup.tensors import StateDict

Name = Literal["torch", "onnxruntime"]


@dataclass(slots=True)
class Runner:
    """`open(wanted)` tries backends out, which takes forward passes and an export: not before they are needed."""

    open: Callable[[Literal["auto", "torch", "onnxruntime"]], Backend]
    ledger: Ledger
    facts: Mapping[str, object]
    metric: Metric
    wanted: Literal["auto", "torch", "onnxruntime"] = "auto"
    backend: Backend | None = None
    known: Name | None = None

    @property
    def name(self) -> Name:
        """The backend that evaluates, tried out where nothing was chosen earlier."""
        if self.wanted == "torch":
            return "torch"
        if self.known is None:
            self.known = self._chosen_earlier() or self._choose()
        return self.known

    @property
    def reason(self) -> str:
        """Why this one, where it was opened in this run."""
        return "" if self.backend is None else self.backend.reason

    def predict(self, state: StateDict, reference: Predict) -> Predict:
        """`reference`, which has `state` loaded, or what gives its statistics sooner."""
        if self.name == "torch":
            return reference
        if self.backend is None:
            self.backend = self.open("onnxruntime")
        return predict_with(self.backend, state, reference, metric=self.metric)

    def _chosen_earlier(self) -> Name | None:
        kept = self.ledger.arrays(self._key(compared=True)) or self.ledger.arrays(self._key(compared=False))
        if kept is None:
            return None
        return "onnxruntime" if kept[1]["name"] == "onnxruntime" else "torch"

    def _choose(self) -> Name:
        self.backend = self.open(self.wanted)
        key = self._key(compared=bool(self.backend.images_per_second))
        self.ledger.keep_arrays(key, {}, {"name": self.backend.name, "reason": self.backend.reason})
        return self.backend.name

    def _key(self, *, compared: bool) -> Key:
        """A comparison holds for any number of candidates.

        One more checkpoint would else time both anew, and where chance decided otherwise no evaluation would be found.
        """
        plan = self.facts.get("plan")
        if compared and isinstance(plan, Mapping):
            plan = {name: fact for name, fact in plan.items() if name != "candidates"}
        what = {"kind": "backend", "wanted": self.wanted}
        return Key({**self.facts, "plan": plan, "metric": self.metric.name, "what": what})
