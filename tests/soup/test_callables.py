from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from soup import SoupError
from soup.callables import call, resolve


@pytest.fixture(autouse=True)
def _same_path_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def refusal(spec: str, folder: Path) -> str:
    with pytest.raises(SoupError) as caught:
        resolve(spec, folder=folder)
    return str(caught.value).replace(f"{folder}/", "")


def write(folder: Path, text: str, name: str = "models.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_function_is_found_in_a_file_and_in_a_package(tmp_path: Path) -> None:
    write(tmp_path, "def build(n):\n    return n + 1\n")

    assert resolve("./models.py:build", folder=tmp_path)(1) == 2
    assert resolve("functools:partial", folder=tmp_path) is functools.partial


def test_the_folder_is_appended_to_the_path_once_and_never_put_first(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 3\n", "besides_models.py")
    write(tmp_path, "import besides_models\ndef build():\n    return besides_models.VALUE\n")
    before = list(sys.path)

    assert resolve("./models.py:build", folder=tmp_path)() == 3
    write(tmp_path, "def build(): ...\n")
    resolve("./models.py:build", folder=tmp_path)
    assert sys.path == [*before, str(tmp_path)]


def test_two_files_of_one_name_are_two_modules_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for name, value in {"a": 1, "b": 2}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, f"def build():\n    return {value}\n")
    found = [resolve("./models.py:build", folder=tmp_path / name)() for name in "ab"]
    write(tmp_path / "a", "def build():\n    return 9\n")  # as long as before, and within the same second

    assert [*found, resolve("./models.py:build", folder=tmp_path / "a")()] == [1, 2, 9]


def test_an_unchanged_file_is_run_once(tmp_path: Path) -> None:
    write(tmp_path, "class Model:\n    pass\n")

    assert resolve("./models.py:Model", folder=tmp_path) is resolve("models.py:Model", folder=tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, "def build(): ...\nSIZE = 3\n")

    assert (
        refusal("./modles.py:build", tmp_path)
        == "'./modles.py:build': cannot read 'modles.py': No such file or directory."
    )
    assert (
        refusal("./models.py:biuld", tmp_path)
        == "'./models.py:biuld': ./models.py has no 'biuld'. Did you mean 'build'?"
    )
    assert refusal("./models.py:SIZE", tmp_path) == "'./models.py:SIZE': 'SIZE' is int, expected a function or a class."
    assert refusal("no_such.deep:f", tmp_path).startswith(
        "'no_such.deep:f': no module named 'no_such.deep'. Install it, or"
    )
    assert refusal("json.nothing:f", tmp_path).startswith("'json.nothing:f': raised ModuleNotFoundError")
    assert refusal("models", tmp_path) == "'models': expected './file.py:name' or 'package.module:name'."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise ValueError('no data here.')\n", "raised ValueError at models.py:2: no data here."),
        ("x = 1\n\ndef build(:\n", "raised SyntaxError at models.py:3: "),
        ("import sys\nsys.exit(0)\n", "raised SystemExit at models.py:2: 0."),
        ("import no_such_module\n", "raised ModuleNotFoundError at models.py:1: No module named 'no_such_module'."),
        ("import json\njson.loads('{')\n", "raised JSONDecodeError at models.py:2: "),
        ("assert False\n", "raised AssertionError at models.py:1."),
    ],
)  # fmt: skip
def test_what_a_file_raises_is_told_with_its_own_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    modules = set(sys.modules)

    assert refusal("./models.py:build", tmp_path).startswith(f"'./models.py:build': {message}")
    assert not [name for name in set(sys.modules) - modules if name.startswith("soup_user")]


def test_what_a_callable_raises_is_told_with_its_own_line_and_cause(tmp_path: Path) -> None:
    path = write(tmp_path, "def inner(n):\n    return 1 / n\n\ndef build(n):\n    return inner(n)\n")

    with pytest.raises(SoupError) as caught:
        call(resolve("./models.py:build", folder=tmp_path), 0, where="model")
    assert str(caught.value) == f"model: raised ZeroDivisionError at {path}:2: division by zero."
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_wrong_arguments_are_told_without_a_line(tmp_path: Path) -> None:
    write(tmp_path, "def build(n): ...\n")

    with pytest.raises(
        SoupError, match=r"^model: raised TypeError: build\(\) got an unexpected keyword argument 'm'\.$"
    ):
        call(resolve("./models.py:build", folder=tmp_path), where="model", m=1)


def test_an_interrupt_is_not_the_callables_fault() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted, where="model")
