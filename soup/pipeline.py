"""From a folder of checkpoints to one model, the story top to bottom: gather, look, search, settle, judge, write."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calib import CalibError
from calib.batchnorm import Recalibration, batchnorm_layers
from calib.samples import choose
from soup import Progress, SoupError
from soup.bookkeeping import Judged, Settled, build_record, evaluations, recipe, trial_records
from soup.build_folder import RECIPE, SOUP, TRIALS, BuildRecord, Hop, TrialRecord, claim_folder, write_build
from soup.build_report import build_markdown
from soup.checkpoint import StateDict
from soup.config import Config
from soup.data import Split
from soup.evaluate import Evaluation
from soup.files import readable_json, shown, staged
from soup.gates import Check, Exit, Subject, exit_code, gain_gate
from soup.judge import hop, paired
from soup.larder import Larder, find_overlaps, gather, load_data
from soup.models import select_device
from soup.report import to_html
from soup.score import Calibration, Kitchen, Policy, value_of, write_soup
from soup.search import Found, Rule, Trial, evaluations_needed, search
from soup.statistics import Interval
from soup.tasks import metric_named

EVALUATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `soup build` tells: the folder, the record and the trials it wrote there, and the exit code they come to."""

    folder: Path
    record: BuildRecord
    trials: tuple[TrialRecord, ...]
    exit_code: Exit


def build(config: Config, out: Path, *, progress: Progress, allow_inconclusive: bool = False) -> BuildResult:
    """Search the checkpoints for the best model on val and write it, with all that an export needs, to `out`.

    Raises SoupError for what the user can mend; `out` is then as it was, but for the decoded images in its cache.
    """
    started = time.monotonic()
    claim_folder(out)
    larder = gather(config, exclude=out, progress=progress)
    splits = load_data(config, ("train", "val", "test"), cache=cache_folder(config, out), progress=progress)
    overlaps = find_overlaps(splits, max_overlap=config.data.max_overlap)
    kitchen = open_kitchen(config, larder, splits, progress=progress)
    found = search(tuple(larder.ingredients), kitchen.score, methods=config.search.methods, rule=kitchen.rule)
    settled = settle(kitchen, found.winner)
    judged = judge(config, kitchen, splits, found, settled)
    trials = trial_records(kitchen, found)
    record = build_record(
        config, out, larder, splits, overlaps,
        kitchen=kitchen, found=found, settled=settled, judged=judged, seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    _write(out, record, trials, kitchen, found, settled, judged)
    return BuildResult(out, record, trials, exit_code(record.checks, allow_inconclusive=allow_inconclusive))


def cache_folder(config: Config, out: Path) -> Path:
    """Where decoded images are kept: val.yaml's choice, or inside the build folder."""
    return config.resolve(config.data.cache.dir) if config.data.cache.dir else out / "cache"


def open_kitchen(config: Config, larder: Larder, splits: Mapping[str, Split], *, progress: Progress) -> Kitchen:
    """All that scoring needs, the calibration images drawn."""
    batchnorm = bool(batchnorm_layers(larder.model))
    calibration = None
    if "train" in splits and batchnorm:
        order = draw_calibration(splits, count=config.batchnorm.samples)
        calibration = Calibration(splits["train"], order, config.batchnorm.batch)
    metric, count = metric_named(config.task, config.metric), len(larder.ingredients)
    rule = Rule(metric.higher_is_better, config.search.min_gain)
    policy: Policy = config.search.bn_policy if calibration else "averaged"
    candidates = evaluations_needed(count, config.search.methods)
    recalibrated = len(calibration.order) if calibration and policy == "recalibrated" else 0
    return Kitchen(
        model=larder.model, device=select_device(config.device), ingredients=larder.ingredients,
        dtype=config.checkpoints.dtype, batchnorm=batchnorm, calibration=calibration,
        policy=policy, val=splits["val"], metric=metric, rule=rule, batch=EVALUATION_BATCH,
        planned=candidates * len(splits["val"]) + (candidates - count) * recalibrated, progress=progress,
    )  # fmt: skip


def draw_calibration(splits: Mapping[str, Split], *, count: int) -> np.ndarray:
    """Indices of the train images that BatchNorm sees again: classes in proportion, none that val or test holds."""
    train = splits["train"]
    judging = {one for name, split in splits.items() if name != "train" for one in split.hashes}
    try:
        return choose(train.hashes, count, exclude=judging, labels=train.targets.get("label"))
    except CalibError as error:
        raise SoupError(f"data.train: nothing to recalibrate BatchNorm on: {error}") from error


def settle(kitchen: Kitchen, trial: Trial) -> Settled:
    """Load the winner anew under each BN policy; the better on val ships, at a tie the one that the search used."""
    evaluated: dict[Policy, Evaluation] = {}
    states: dict[Policy, StateDict] = {}
    recalibrations: dict[Policy, Recalibration | None] = {}
    for policy in _policies(kitchen, trial):
        recalibrations[policy] = kitchen.prepare(trial.weights, policy)
        states[policy] = kitchen.state()
        searched = policy == kitchen.policy_for(trial.weights)
        evaluated[policy] = (
            kitchen.with_outputs(trial.weights) if searched else kitchen.evaluate(kitchen.val, keep_outputs=True)
        )
    best = min(evaluated, key=lambda policy: kitchen.rule.rank(value_of(evaluated[policy])))
    return Settled(trial, best, states[best], recalibrations[best], evaluated)


def judge(config: Config, kitchen: Kitchen, splits: Mapping[str, Split], found: Found, settled: Settled) -> Judged:
    """Compare winner and best single in pairs: on test where there is one, else on val (and the report says so)."""
    split, metric = splits.get("test", splits["val"]), kitchen.metric
    kitchen.load(settled.state)
    winner = settled.evaluation if split.name == "val" else kitchen.evaluate(split)
    kitchen.prepare(found.singles[0].weights, "own")
    single_on_val = kitchen.with_outputs(found.singles[0].weights)
    single = single_on_val if split.name == "val" else kitchen.evaluate(split, whose="the best single")
    interval = paired(metric, winner.per_sample, single.per_sample, groups=split.groups)
    checks = _gain_checks(config, kitchen, settled.trial, interval, split)
    return Judged(split.name, single, winner, interval, single_on_val, _hops(kitchen, settled, single_on_val), checks)


def _gain_checks(config: Config, kitchen: Kitchen, trial: Trial, interval: Interval, split: Split) -> tuple[Check, ...]:
    """`gates.gain`: the best single as the winner fails it, whatever the samples could decide."""
    gate, metric = config.gates.gain, kitchen.metric
    if gate is None:
        return ()
    subject = Subject("gain", "best single → soup", f"torch, {split.name}")
    if trial.method == "single":
        message = "no soup did better on val: the best single is the model"
        return (Check("gain", subject.hop, "gain", "fail", message, 0.0, gate.min, metric.unit, subject.where),)
    higher = metric.higher_is_better
    return (gain_gate(interval, subject, min_gain=gate.min, higher_is_better=higher, unit=metric.unit),)


def _policies(kitchen: Kitchen, trial: Trial) -> tuple[Policy, ...]:
    searched = kitchen.policy_for(trial.weights)
    if searched == "own" or kitchen.calibration is None:
        return (searched,)
    return (searched, "averaged" if searched == "recalibrated" else "recalibrated")


def _hops(kitchen: Kitchen, settled: Settled, single: Evaluation) -> tuple[Hop, ...]:
    """best single → soup (averaged statistics) → recalibrated: which of the two steps gained or lost what."""
    names: Mapping[Policy, str] = {"averaged": "soup", "recalibrated": "recalibrated"}
    steps = [("best single", single)]
    steps += [
        (name, settled.evaluations[policy])
        for policy, name in names.items()
        if policy in settled.evaluations and not (policy == "recalibrated" and settled.policy == "averaged")
    ]
    return tuple(
        hop(f"{one} → {other}", before, after, metric=kitchen.metric, groups=kitchen.val.groups, split="val",
            where=f"torch on {kitchen.device}")[0]
        for (one, before), (other, after) in itertools.pairwise(steps)
    )  # fmt: skip


def _write(
    out: Path, record: BuildRecord, trials: tuple[TrialRecord, ...], kitchen: Kitchen, found: Found, settled: Settled,
    judged: Judged,
) -> None:  # fmt: skip
    """Everything under a temporary name first, the recipe last; what was written is read back and compared."""
    with staged(out, last=RECIPE) as stage:
        write_soup(stage / SOUP, kitchen, settled.trial.weights, state=settled.state, measured=settled.recalibration)
        (stage / TRIALS).write_bytes(readable_json([asdict(trial) for trial in trials]))
        (stage / RECIPE).write_bytes(readable_json(recipe(kitchen, found, settled, record.state_sha256)))
        markdown = shown(build_markdown(record, trials))
        (stage / "report.md").write_text(markdown, encoding="utf-8")
        (stage / "report.html").write_text(to_html(markdown, title="soup build"), encoding="utf-8")
        write_build(stage, record, evaluations(found, settled, judged))
