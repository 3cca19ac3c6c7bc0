"""From a folder of checkpoints to one model, the story top to bottom: gather, look, search, settle, judge, write."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calib import CalibError
from calib.batchnorm import batchnorm_layers
from calib.samples import choose, list_sha256
from soup import Progress, SoupError
from soup.aids import aids_of, geometry_of, open_for
from soup.backends import Plan
from soup.bookkeeping import Judged, Settled, build_record, cost_of, evaluations, recipe, trial_records
from soup.build_folder import (
    LEDGER,
    PICTURE,
    RECIPE,
    RESOLUTIONS,
    SOUP,
    TRIALS,
    BuildRecord,
    Hop,
    claim_folder,
    write_build,
)
from soup.build_report import build_markdown
from soup.config import Config
from soup.data import Split
from soup.deployed import Deployed
from soup.evaluate import Evaluation
from soup.files import array_entry, readable_json, shown, staged, write_safetensors
from soup.gates import Check, Exit, Subject, exit_code, gain_gate
from soup.judge import hop, paired
from soup.keys import run_facts
from soup.larder import Larder, find_overlaps, gather, load_data
from soup.ledger import Ledger
from soup.lock import locked
from soup.models import select_device, torch_predict
from soup.own_metric import metric_of
from soup.picture import picture_svg
from soup.prior import expected_order
from soup.recalibration import Calibration
from soup.report import to_html
from soup.resolutions import Sweep, sweep
from soup.runner import Runner
from soup.score import Kitchen, Policy
from soup.search import Found, evaluations_needed, search
from soup.search_records import TrialRecord
from soup.serving import write_soup
from soup.significance import p_value
from soup.statistics import Interval
from soup.task_settings import evaluation_batch, refuse_beyond, settings_of
from soup.tasks import Metric
from soup.trials import Rule, Trial, value_of
from soup.variants import Images, Rules
from soup.why import explain

PILOT = 128  # images of each ingredient, where no recorded metric says which is likely the best


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `soup build` tells: the folder, the record and the trials it wrote there, and the exit code they come to."""

    folder: Path
    record: BuildRecord
    trials: tuple[TrialRecord, ...]
    exit_code: Exit
    not_reused: tuple[str, ...] = ()  # candidate: why the ledger had no answer
    show_reuse: bool = False  # whether the terminal lists them


def build(
    config: Config, out: Path, *, progress: Progress, allow_inconclusive: bool = False, show_reuse: bool = False
) -> BuildResult:
    """Search the checkpoints for the best model on val and write it, with all that an export needs, to `out`.

    One build at a time works in a folder. Every evaluation is kept in its ledger at once, so that a build that was
    stopped, or one with another checkpoint, asks only for what is new.
    Raises SoupError for what the user can mend; `out` is then as it was, but for decoded images and the ledger.
    """
    started = time.monotonic()
    claim_folder(out)
    with locked(out, "soup build"), Ledger(out / LEDGER) as ledger:
        larder = gather(config, exclude=out, progress=progress)
        splits = load_data(config, ("train", "val", "test"), cache=cache_folder(config, out), progress=progress)
        overlaps = find_overlaps(config, splits)
        kitchen = open_kitchen(config, larder, splits, ledger=ledger, progress=progress)
        found = run_search(config, larder, kitchen)
        settled = settle(kitchen, found.winner)
        judged = judge(config, kitchen, splits, found, settled)
        cost = cost_of(config, kitchen, found)
        geometry = geometry_of(larder, kitchen) if len(larder.cookable) > 1 else None
        explanation = explain(config, larder, kitchen, found, settled, geometry)
        swept = sweep(config, kitchen, settled, cache=cache_folder(config, out), progress=progress)
        trials = trial_records(kitchen, found, geometry)
        record = build_record(
            config, out, larder, splits, overlaps, explanation, cost,
            kitchen=kitchen, found=found, settled=settled, judged=judged, points=swept.points,
            seconds=round(time.monotonic() - started, 1),
        )  # fmt: skip
        base = larder.base.sha256 if larder.base else None
        _write(out, record, trials, kitchen, found, settled, judged, swept, base=base)
        why = tuple(kitchen.why)
    code = exit_code(record.checks, allow_inconclusive=allow_inconclusive)
    return BuildResult(out, record, trials, code, why, show_reuse)


def cache_folder(config: Config, out: Path) -> Path:
    """Where decoded images are kept: val.yaml's choice, or inside the build folder."""
    return config.resolve(config.data.cache.dir) if config.data.cache.dir else out / "cache"


def open_kitchen(
    config: Config, larder: Larder, splits: Mapping[str, Split], *, progress: Progress, ledger: Ledger | None = None
) -> Kitchen:
    """All that scoring needs, the calibration images drawn; without a ledger nothing outlives the kitchen."""
    batchnorm = bool(batchnorm_layers(larder.model))
    calibration = None
    if "train" in splits and batchnorm:
        order = draw_calibration(splits, count=config.batchnorm.samples)
        calibration = Calibration(splits["train"], order, config.batchnorm.batch)
    device = select_device(config.device)
    first = partial(torch_predict(larder.model, device=device), {"input": splits["val"].inputs(np.arange(1))})
    settings = settings_of(config, splits["val"], first)
    for split in (splits[name] for name in ("val", "test") if name in splits):
        refuse_beyond(split, settings, task=config.task)
    metric, count = metric_of(config.task, config.metric, settings, folder=config.folder), len(larder.ingredients)
    policy: Policy = config.search.bn_policy if calibration else "averaged"
    budget = config.search.budget
    candidates = evaluations_needed(count, config.search.methods, budget=budget.evaluations if budget else None)
    recalibrated = len(calibration.order) if calibration and policy == "recalibrated" else 0
    ledger = ledger or Ledger(None)
    deployed = deployed_of(config, larder, splits)
    facts = run_facts(config, settings, device=str(device)) | ({"precision": deployed.facts} if deployed else {})
    kitchen = Kitchen(
        model=larder.model, device=device, ingredients=larder.cookable,
        dtype=config.checkpoints.dtype, batchnorm=batchnorm, calibration=calibration,
        policy=policy, val=splits["val"], metric=metric, rule=rule_of(config, metric, splits["val"]),
        batch=evaluation_batch(config), planned=candidates * len(splits["val"]) + (candidates - count) * recalibrated,
        progress=progress, ledger=ledger, facts=facts, settings=settings, runner=deployed,
    )  # fmt: skip
    if deployed:
        return kitchen
    plan = Plan(candidates, len(splits["val"]), evaluation_batch(config))
    kitchen.runner = Runner(
        partial(open_for, kitchen, plan=plan), ledger, facts | {"plan": asdict(plan)}, metric,
        wanted=config.search.backend,
    )  # fmt: skip
    return kitchen


def deployed_of(config: Config, larder: Larder, splits: Mapping[str, Split]) -> Deployed | None:
    """What makes candidates ready to be asked in `search.precision`; None where that is torch's own FP32."""
    if config.search.precision == "fp32":
        return None
    count, split = config.quantization.samples, splits.get("train", splits["val"])
    order = draw_calibration(splits, count=count) if "train" in splits else np.arange(min(count, len(split)))
    images = Images(split.inputs(order), list_sha256([split.hashes[row] for row in order]), split.name)
    return Deployed(
        larder.model, config.search.precision, int8_rules(config), images, config.export.opset, evaluation_batch(config)
    )


def int8_rules(config: Config) -> Rules:
    """How INT8 is made, of a candidate as of what ships."""
    rules = config.quantization
    return Rules(rules.method, rules.percentile, rules.backend, rules.rest)


def rule_of(config: Config, metric: Metric, val: Split) -> Rule:
    """When an ingredient stays, as val.yaml has it."""

    def p(after: Evaluation, before: Evaluation) -> float:
        return p_value(
            after.per_sample, before.per_sample, metric.reduce,
            higher_is_better=metric.higher_is_better, resampled=metric.resampled, groups=val.groups,
        )[0]  # fmt: skip

    return Rule(metric.higher_is_better, config.search.min_gain, config.search.confidence, p)


def run_search(config: Config, larder: Larder, kitchen: Kitchen) -> Found:
    """The methods of val.yaml, over what the larder holds."""
    recorded = expected_order(larder.ingredients, metric=config.metric)
    order = recorded if config.checkpoints.order == "recorded" else None
    score = kitchen.score if config.search.early_stop else kitchen.score_in_full
    return search(
        order or sorted(larder.ingredients), score, methods=config.search.methods, rule=kitchen.rule,
        aids=aids_of(config, larder, kitchen, pilot=PILOT if order is None and config.search.early_stop else None),
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
    for policy in _policies(kitchen, trial):
        evaluated[policy] = kitchen.with_outputs(trial.weights, policy, kitchen.val)
    best = min(evaluated, key=lambda policy: kitchen.rule.rank(value_of(evaluated[policy])))
    recalibrated = evaluated.get("recalibrated")
    has_statistics = recalibrated is not None and not math.isnan(value_of(recalibrated))
    measured = kitchen.prepare(trial.weights, "recalibrated") if has_statistics else None
    recalibration = kitchen.prepare(trial.weights, best)
    convergence = measured.convergence if measured else None
    return Settled(trial, best, kitchen.state(), recalibration, evaluated, convergence)


def judge(config: Config, kitchen: Kitchen, splits: Mapping[str, Split], found: Found, settled: Settled) -> Judged:
    """Compare winner and best single in pairs: on test where there is one, else on val (and the report says so)."""
    split, metric = splits.get("test", splits["val"]), kitchen.metric
    best = found.singles[0].weights
    winner, single_on_val = settled.evaluation, kitchen.with_outputs(best, "own", kitchen.val)
    single = single_on_val
    if split.name != "val":
        winner = kitchen.measure(settled.trial.weights, settled.policy, split, phase="judging")
        single = kitchen.measure(best, "own", split, phase="judging")
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
            where=_where(kitchen), labels=kitchen.val.targets.get("label"), class_names=kitchen.val.class_names,
            ids=kitchen.val.ids)[0]
        for (one, before), (other, after) in itertools.pairwise(steps)
    )  # fmt: skip


def _where(kitchen: Kitchen) -> str:
    lowered = kitchen.runner if isinstance(kitchen.runner, Deployed) else None
    return f"{lowered.name} on cpu" if lowered else f"torch on {kitchen.device}"


def _write(
    out: Path, record: BuildRecord, trials: tuple[TrialRecord, ...], kitchen: Kitchen, found: Found, settled: Settled,
    judged: Judged, swept: Sweep, *, base: str | None,
) -> None:  # fmt: skip
    """Everything under a temporary name first, the recipe last; what was written is read back and compared."""
    with staged(out, last=RECIPE) as stage:
        write_soup(stage / SOUP, kitchen, settled.trial.weights, state=settled.state, measured=settled.recalibration)
        (stage / TRIALS).write_bytes(readable_json([asdict(trial) for trial in trials]))
        (stage / RECIPE).write_bytes(readable_json(recipe(kitchen, found, settled, record.state_sha256, base=base)))
        if swept.statistics:
            write_safetensors(stage / RESOLUTIONS, {k: array_entry(a) for k, a in swept.statistics.items()})
        picture = picture_svg(record)
        if picture:
            (stage / PICTURE).write_bytes(picture)
        markdown = shown(build_markdown(record, trials, picture=PICTURE if picture else None))
        (stage / "report.md").write_text(markdown, encoding="utf-8")
        html = to_html(markdown, title="soup build", images={PICTURE: picture} if picture else None)
        (stage / "report.html").write_text(html, encoding="utf-8")
        write_build(stage, record, evaluations(found, settled, judged))
    if not swept.statistics:
        (out / RESOLUTIONS).unlink(missing_ok=True)  # of an earlier build
