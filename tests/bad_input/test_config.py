"""A val.yaml that cannot be meant, and code beside it that is missing, raises, or gives something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Refused

NETWORK = (
    "class Network(nn.Sequential):\n    def forward(self, x):\n        {}\n\ndef bad():\n    return Network(*build())\n"
)
BAD_MODEL = ("--set", "model=./models.py:bad")


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "val.yaml: is empty, expected keys such as 'model' and 'data'. `soup init` writes an example."),
        (b"- runs\n- data\n", "val.yaml: expected keys such as 'model' and 'data', got a list."),
        (b"model: a\n\xff\xfe", "val.yaml:2: not UTF-8 text. Save the file as UTF-8."),
        (b"model: [a\n", "val.yaml:2: not YAML: expected ',' or ']', but got '<stream end>'."),
    ],
    ids=["empty", "list", "binary", "broken"],
)
def test_a_val_yaml_that_is_none_is_refused(project: Path, refused: Refused, data: bytes, message: str) -> None:
    (project / "val.yaml").write_bytes(data)
    assert refused(project, "build") == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.yaml", "none.yaml: no such file. `soup init RUNS_DIR` writes one."),
        ("runs", "runs: is a folder, expected a file such as 'runs/val.yaml'."),
        ("circle.yaml", "circle.yaml: cannot be read: Too many levels of symbolic links."),
    ],
)
def test_a_val_yaml_that_cannot_be_read_is_refused(project: Path, refused: Refused, name: str, message: str) -> None:
    (project / "circle.yaml").symlink_to("circle.yaml")
    assert refused(project, "build", "--val", name) == message


def test_every_problem_of_a_val_yaml_is_told_at_once_by_line_and_key(project: Path, refused: Refused) -> None:
    append(project / "val.yaml", "serach: {}\nexport: {batch: many}\ndevice: tpu\nmetric: acc\nextra: 1\n")
    told = refused(project, "build", "--set", "data.max_overlap=half").splitlines()
    beginnings = (
        "val.yaml:8: serach: unknown key. Did you mean 'search'?",
        "val.yaml:9: export.batch: expected a whole number from 1, or {min, opt, max} in rising order, got 'many'.",
        "val.yaml:10: device: expected auto, cpu, cuda or cuda:0, got 'tpu'.",
        "val.yaml:11: metric: 'acc' is not known for classification. Expected one of accuracy, top5, cross_entropy",
        "val.yaml:12: extra: unknown key. Known here: model, ",
        "--set data.max_overlap=half: data.max_overlap: expected a number, got 'half'.",
    )
    assert len(told) == len(beginnings)
    assert all(any(line.startswith(beginning) for line in told) for beginning in beginnings), told


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nope=1", "--set nope=1: nope: unknown key. Known here: "),
        ("metric", "--set metric: expected key.sub=value, as in gates.accuracy.max_drop=0.01."),
        ("batchnorm.batch=0", "--set batchnorm.batch=0: batchnorm.batch: expected 1 or more, got 0."),
        ("extends=x.yaml", "--set extends=x.yaml: extends: unknown key."),
    ],
)
def test_a_set_option_that_cannot_be_meant_is_refused(
    project: Path, refused: Refused, option: str, message: str
) -> None:
    assert refused(project, "build", "--set", option).startswith(message)


def test_a_device_that_is_not_there_is_told_before_any_image_is_decoded(project: Path, refused: Refused) -> None:
    (project / "val.npz").unlink()
    told = refused(project, "build", "--set", "device=cuda:63", code=6)
    assert told.startswith("device: 'cuda:63' ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "'./models.py:build': cannot read '{folder}/models.py': No such file or directory."),
        ("def build(:\n", "'./models.py:build': raised SyntaxError at {folder}/models.py:1: invalid syntax"),
        (
            "import nonesuch\n",
            "'./models.py:build': raised ModuleNotFoundError at {folder}/models.py:1: No module named",
        ),
        (
            "\nraise ValueError('two\\nlines')\n",
            "'./models.py:build': raised ValueError at {folder}/models.py:2: two lines.",
        ),
        ("def biuld(): ...\n", "'./models.py:build': ./models.py has no 'build'. Did you mean 'biuld'?"),
        ("build = 3\n", "'./models.py:build': 'build' is int, expected a function or a class."),
        (
            "def build():\n    raise KeyError('k')\n",
            "model './models.py:build': raised KeyError at {folder}/models.py:2: 'k'.",
        ),
        (
            "import sys\n\ndef build():\n    sys.exit(0)\n",
            "model './models.py:build': raised SystemExit at {folder}/models.py:4: 0.",
        ),
        ("def build(): ...\n", "model './models.py:build': returned NoneType, expected a torch.nn.Module."),
        (
            "from torch import nn\n\ndef build():\n    return nn.LazyLinear(3)\n",
            "model './models.py:build': 'weight' is lazy, expected a tensor of known shape. Run it on an image first.",
        ),
    ],
    ids=[
        "missing",
        "syntax",
        "import",
        "raises at import",
        "misspelt",
        "no function",
        "raises",
        "exits",
        "None",
        "lazy",
    ],
)
def test_code_that_gives_no_model_is_told_with_its_line(
    project: Path, refused: Refused, source: str | None, message: str
) -> None:
    path = project / "models.py"
    path.unlink() if source is None else path.write_text(source)
    assert refused(project, "build").startswith(message.format(folder=project))


def test_model_args_that_the_callable_does_not_take_are_told(project: Path, refused: Refused) -> None:
    told = refused(project, "build", "--set", "model_args.colour=3")
    assert told.startswith("model './models.py:build': raised TypeError: ")
    assert "unexpected keyword argument 'colour'" in told


def test_a_package_that_is_not_installed_is_told(project: Path, refused: Refused) -> None:
    told = refused(project, "build", "--set", "model=no.such:thing")
    assert told.startswith("'no.such:thing': no module named 'no.such'. Install it, or write './no/such.py:…'")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            "raise ValueError('boom')",
            "model: forward of input (64, 1, 8, 8): raised ValueError at {folder}/models.py:13: boom.",
        ),
        ("return None", "model: forward returned NoneType, expected a tensor, or a list or dict of tensors."),
        (
            "return super().forward(x), 'logits'",
            "model: forward returned tuple, expected a tensor, or a list or dict of tensors.",
        ),
        ("return {}", "model: it gave no output, expected at least one array."),
        (
            "return super().forward(x)[:1]",
            "model: output 'output' has shape (1, 10), expected 64 rows, one for each sample.",
        ),
        (
            "return super().forward(x).mean()",
            "model: output 'output' has shape (), expected 64 rows, one for each sample.",
        ),
        (
            "return super().forward(x)[..., None]",
            "model: output 'output' has shape (64, 10, 1), expected logits (images, classes). Return them first.",
        ),
        (
            "return super().forward(x)[:, :9]",
            "data: label 9, expected 0 to 8, the outputs of the model. "
            "Check the classes of the split and the model's arguments.",
        ),
    ],
    ids=["raises", "None", "tuple", "nothing", "one row", "scalar", "three axes", "fewer classes"],
)
def test_a_network_that_does_not_answer_with_logits_is_told(
    project: Path, refused: Refused, forward: str, message: str
) -> None:
    append(project / "models.py", NETWORK.format(forward))
    assert refused(project, "build", *BAD_MODEL) == message.format(folder=project)


def test_images_of_other_channels_than_the_network_takes_are_told(project: Path, refused: Refused) -> None:
    three = ("--set", "preprocess.mean=[0.3]", "--set", "preprocess.std=[0.3]", "--set", "preprocess.color=rgb")
    told = refused(project, "build", *three)
    assert told.startswith("model: forward of input (64, 3, 8, 8): raised RuntimeError at ")
    assert "to have 1 channels, but got 3 channels instead." in told


@pytest.mark.parametrize("batchnorm", ["batch=1", "samples=101"], ids=["one by one", "one left over"])
def test_a_batch_of_one_pixel_has_no_variance_and_is_told(project: Path, refused: Refused, batchnorm: str) -> None:
    """Correctness 22."""
    small = ("--set", "preprocess.crop=2", "--set", "data.max_overlap=1", "--set", f"batchnorm.{batchnorm}")
    told = refused(project, "build", *small)
    assert "BatchNorm '5' received 1 value per channel, expected 2 or more. Choose a batch size" in told
