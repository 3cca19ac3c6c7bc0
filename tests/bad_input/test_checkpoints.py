"""Checkpoints that cannot be averaged, read, or told apart (correctness 14 to 17), as `soup build` meets them."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soup.build_folder import read_build
from soup.files import sha256_file

from .conftest import Accepted, Refused

SKIP = ("--set", "checkpoints.on_bad_ingredient=skip")
FIRST, SECOND = Path("runs/epoch-3.pt"), Path("runs/epoch-4.pt")


class Malicious:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Save the checkpoint anew with other tensors; those that are None are left out. A name's `_` stands for a dot."""
    state = torch.load(path)["model"] | {name.replace("_", ".", 1): tensor for name, tensor in tensors.items()}
    torch.save({"model": {name: tensor for name, tensor in state.items() if tensor is not None}}, path)


def poison(path: Path) -> None:
    weight = torch.load(path)["model"]["0.weight"]
    weight.view(-1)[3:5] = torch.nan
    change(path, **{"0_weight": weight})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is empty \(0 bytes\)\. Copy or save the checkpoint again\."),
        (
            b"epoch loss\n1 0.5\n",
            r"is text \('epoch loss.*'\), not a checkpoint\. Leave it out of checkpoints\.files\.",
        ),
        (bytes(range(256)), r"is neither a torch\.save nor a safetensors file\. Leave it out"),
        (pickle.dumps(Malicious()), r"is a bare pickle, which can run code\. Load it where you trust it"),
    ],
    ids=["empty", "text", "noise", "malicious pickle"],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(
    project: Path, refused: Refused, data: bytes, message: str
) -> None:
    (project / SECOND).write_bytes(data)
    assert re.fullmatch(f"{project / SECOND}: {message}.*", refused(project, "build"))


def test_a_truncated_checkpoint_is_refused_by_name(project: Path, refused: Refused) -> None:
    (project / SECOND).write_bytes((project / SECOND).read_bytes()[:900])
    assert "epoch-4.pt: is a truncated or damaged zip" in refused(project, "build")


def test_what_a_checkpoint_would_run_stays_dead_and_is_told(project: Path, accepted: Accepted) -> None:
    torch.save({**torch.load(project / SECOND), "hook": Malicious()}, project / SECOND)
    accepted(project, "build")
    assert not (project / "pwned").exists()
    ingredients = read_build(project / "soup-out").record.ingredients
    assert any("objects that were not made: 'posix.system'" in note for one in ingredients for note in one.notes)


def test_every_unusable_checkpoint_is_told_at_once(project: Path, refused: Refused) -> None:
    (project / FIRST).write_bytes(b"")
    (project / SECOND).write_text("text")
    first, second = refused(project, "build").splitlines()
    assert first.startswith(f"{project / FIRST}: is empty")
    assert second.startswith(f"{project / SECOND}: is text")


@pytest.mark.parametrize(
    ("tensors", "messages"),
    [
        ({"9_bias": None}, ["lacks a tensor that the model has: '9.bias'."]),
        (
            {"9_gain": torch.ones(3)},
            ["has a tensor that the model lacks: '9.gain'. checkpoints.drop leaves tensors out."],
        ),
        (
            {"0_weight": torch.ones(8, 1, 5, 5)},
            ["tensor '0.weight' has shape (8, 1, 5, 5), expected (8, 1, 3, 3) as in the model."],
        ),
        (
            {"9_weight": torch.ones(12, 32), "9_bias": torch.ones(12)},
            [
                "the last layer '9' has 12 classes, expected 10 as in the model.",
                "tensor '9.weight' has shape (12, 32), expected (10, 32) as in the model.",
                "tensor '9.bias' has shape (12,), expected (10,) as in the model.",
            ],
        ),
    ],
    ids=["key missing", "key too many", "shape", "class count"],
)
def test_a_checkpoint_of_another_network_is_refused_with_every_difference(
    project: Path, refused: Refused, tensors: dict[str, torch.Tensor | None], messages: list[str]
) -> None:
    """Correctness 14."""
    change(project / FIRST, **tensors)
    told = refused(project, "build").splitlines()
    assert told[:-1] == [f"{project / FIRST}: {message}" for message in messages]
    assert told[-1] == "checkpoints: leave these out, or set on_bad_ingredient: skip."


def test_a_model_of_other_classes_than_all_checkpoints_is_told_once_for_all(project: Path, refused: Refused) -> None:
    told = refused(project, "build", "--set", "model_args.num_classes=12").splitlines()
    assert told[0] == f"{project / FIRST} and 3 more: the last layer '9' has 10 classes, expected 12 as in the model."
    assert len(told) == 3


def test_a_nan_is_refused_with_its_first_tensor_or_set_aside_and_listed(
    project: Path, refused: Refused, accepted: Accepted
) -> None:
    """Correctness 17."""
    poison(project / FIRST)
    told = refused(project, "build").splitlines()
    assert told[0] == f"{project / FIRST}: tensor '0.weight' holds NaN or Inf in 2 of 72 values."
    stdout = accepted(project, "build", *SKIP)
    assert f"set aside    {project / FIRST}: tensor '0.weight' holds NaN or Inf in 2 of 72 values." in stdout
    record = read_build(project / "soup-out").record
    assert len(record.ingredients) == 3
    assert [Path(path).name for path, _ in record.set_aside] == ["epoch-3.pt"]


@pytest.mark.parametrize("spoil", [poison, lambda path: path.write_bytes(b"")], ids=["NaN", "empty"])
def test_when_every_checkpoint_is_set_aside_nothing_is_built(
    project: Path, refused: Refused, spoil: Callable[[Path], object]
) -> None:
    for path in (project / "runs").iterdir():
        spoil(path)
    assert f"{project / FIRST}" in refused(project, "build", *SKIP)


def test_a_checkpoint_that_breaks_off_numbers_does_not_win(project: Path, accepted: Accepted) -> None:
    """Finite weights whose outputs are not: counted as wrong answers, last in the order, and told."""
    state = torch.load(project / FIRST)["model"]
    change(project / FIRST, **{"9_weight": state["9.weight"] * 1e38, "9_bias": state["9.bias"] * 1e38})
    stdout = accepted(project, "build", "--set", "search.methods=[greedy]", "--set", "search.bn_policy=averaged")
    assert re.search(r"note +runs/epoch-3\.pt: its outputs hold NaN or Inf for \d+ of 400 images of data\.val", stdout)
    assert not any("epoch-3" in line for line in stdout.splitlines() if line.startswith("The "))


def test_an_average_that_overflows_in_recalibration_is_a_candidate_without_a_score(
    project: Path, accepted: Accepted
) -> None:
    """Correctness 22: no statistics are made of NaN or Inf, and one ruined checkpoint does not end the search."""
    change(project / FIRST, **{"1_weight": torch.full((8,), 3e38)})
    told = accepted(project, "build")
    assert "the average of " in told
    assert ": batch 1: BatchNorm '5' received NaN or Inf, expected finite activations. Look for a bad image" in told
    reasons = {trial["reason"] for trial in json.loads((project / "soup-out/trials.json").read_text())}
    assert "not_a_number" in reasons
    weights = json.loads((project / "soup-out/recipe.json").read_text())["weights"]
    assert len(weights) >= 1
    assert sha256_file(project / FIRST) not in weights


@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy"])
def test_when_no_checkpoint_answers_with_numbers_there_is_no_winner(
    project: Path, refused: Refused, metric: str
) -> None:
    for path in (project / "runs").iterdir():
        change(path, **{"1_running_var": torch.zeros(8), "1_weight": torch.full((8,), 3e38)})
    told = refused(project, "build", "--set", f"metric={metric}")
    assert told.startswith("model: whichever checkpoint it has, its outputs hold NaN or Inf for ")
    assert " of 400 images of data.val. Check preprocess.mean and std, and weights that overflow." in told


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("[none/*.pt]", ".: no checkpoint matches 'none/*.pt'. Correct checkpoints.files."),
        ("[runs/none.pt]", "runs/none.pt: does not exist. Correct checkpoints.files."),
        ("[runs]", "runs: is a folder without "),
        ("[runs/loop.pt]", "runs/loop.pt: does not exist (a link to what does not exist). Correct checkpoints.files."),
    ],
)
def test_files_that_name_no_checkpoint_are_refused(project: Path, refused: Refused, files: str, message: str) -> None:
    (project / "runs/loop.pt").symlink_to("loop.pt")
    assert message in refused(project, "build", "--set", f"checkpoints.files={files}")


def test_a_pair_that_overflows_ends_neither_the_search_nor_its_explanation(project: Path, accepted: Accepted) -> None:
    """The line, and the causes, are measured where the only soup has no score."""
    change(project / FIRST, **{"1_weight": torch.full((8,), 3e38)})
    files = ("--set", "checkpoints.files=[runs/epoch-3.pt, runs/epoch-4.pt]")
    told = accepted(project, "build", *files)
    assert "The best single checkpoint, runs/epoch-4.pt, is the model" in told
    assert "received NaN or Inf" in told
    before = (project / "soup-out/recipe.json").read_bytes()
    accepted(project, "build", *files)
    assert (project / "soup-out/recipe.json").read_bytes() == before


def test_a_variance_below_zero_is_refused(project: Path, refused: Refused) -> None:
    change(project / FIRST, **{"1_running_var": torch.full((8,), -1.0)})
    assert "tensor '1.running_var' holds a variance below zero, whose root is no number." in refused(project, "build")


def test_a_network_that_renames_its_tensors_is_refused(project: Path, refused: Refused) -> None:
    (project / "models.py").write_text(
        (project / "models.py").read_text()
        + """

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()

    def state_dict(self, *args, **kwargs):
        return self.inner.state_dict(*args, **kwargs)
"""
    )
    told = refused(project, "build", "--set", "model=./models.py:Wrapped")
    assert "its state_dict has '0.weight', expected only the names of its parameters and buffers." in told


def test_an_empty_runs_folder_is_refused(project: Path, refused: Refused) -> None:
    shutil.rmtree(project / "runs")
    (project / "runs").mkdir()
    assert refused(project, "build") == ".: no checkpoint matches 'runs/*.pt'. Correct checkpoints.files."


def test_what_a_pattern_matches_beside_checkpoints_is_left_out_and_told(project: Path, accepted: Accepted) -> None:
    """Correctness 16: copies, a folder, links to nowhere, to themselves and to the same file."""
    runs = project / "runs"
    shutil.copy(project / FIRST, runs / "copy.pt")
    (runs / "folder.pt").mkdir()
    (runs / "circle.pt").symlink_to("circle.pt")
    (runs / "gone.pt").symlink_to("nothing")
    (runs / "same.pt").symlink_to("epoch-4.pt")
    (runs / "all").symlink_to(".")
    accepted(project, "build", "--set", "checkpoints.files=[runs/*.pt, runs/all/*.pt]")
    record = read_build(project / "soup-out").record
    told = "\n".join(record.notes)
    assert len(record.ingredients) == 4
    assert f"{project / FIRST}: is a copy of '{runs / 'copy.pt'}', counted once." in told
    assert "folder.pt: left out, a folder that is no checkpoint" in told
    assert "circle.pt: left out, a link to what does not exist" in told
    assert "gone.pt: left out, a link to what does not exist" in told
    assert "same.pt: left out, the same file as" in told


def test_a_pipe_is_refused_and_not_waited_for(project: Path, refused: Refused) -> None:
    os.mkfifo(project / "runs/pipe.pt")
    told = refused(project, "build")
    assert told.startswith(f"{project / 'runs/pipe.pt'}: is a pipe or a device, expected a file.")


def test_a_name_that_is_not_utf8_is_written_so_that_any_reader_takes_it(project: Path, accepted: Accepted) -> None:
    (project / FIRST).rename(project / "runs" / os.fsdecode(b"\xff.pt"))
    stdout = accepted(project, "build", "--json")
    assert r"runs/\\udcff.pt" in stdout
    assert r"runs/\udcff.pt" in {one.path for one in read_build(project / "soup-out").record.ingredients}
    assert r"\udcff.pt" in (project / "soup-out/report.md").read_text(encoding="utf-8")


def test_one_checkpoint_is_no_error_and_the_report_says_that_there_was_nothing_to_average(
    project: Path, accepted: Accepted
) -> None:
    stdout = accepted(project, "build", "--set", f"checkpoints.files=[{FIRST}]")
    assert "note         one checkpoint: there was nothing to average, and it is the model" in stdout
    assert "nothing to average" in (project / "soup-out/report.md").read_text()
    winner = read_build(project / "soup-out").record.winner
    assert (winner.method, winner.bn_policy, len(winner.weights)) == ("single", "own", 1)
