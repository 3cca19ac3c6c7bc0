from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.yaml_source import Source, dotted, override, read_source

NAMES = st.text(alphabet="abcdef", min_size=1, max_size=3)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(alphabet="xyz ä:#'\"{}", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def read(folder: Path, text: str, *options: str, environment: Mapping[str, str] | None = None) -> Source:
    (folder / "val.yaml").write_text(text)
    environment = environment or {}
    source = read_source(folder / "val.yaml", environment=environment, shorthands={"checkpoints": "files"})
    return override(source, options, environment=environment, shorthands={"checkpoints": "files"})


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SoupError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


@settings(max_examples=30, deadline=None)
@given(tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=4))
def test_what_pyyaml_writes_is_read_back(tree: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    source = read(tmp_path_factory.mktemp("yaml"), yaml.safe_dump(tree, allow_unicode=True))

    assert source.values == tree
    assert source.problems == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-5", -5), ("2.", 2.0), ("True", True), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("1:30", "1:30"), ("2026-01-02", "2026-01-02"), (".inf", ".inf"), ("'3'", "3"),
    ],
)  # fmt: skip
def test_plain_words_are_typed_as_in_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"a: {text}").values["a"]

    assert found == value
    assert type(found) is type(value)


def test_every_key_knows_its_file_and_line(tmp_path: Path) -> None:
    source = read(tmp_path, "a:\n  b: 1\n  c:\n  - x\n  - y\n")

    places = {dotted(key): place.removeprefix(f"{tmp_path}/") for key, place in source.places.items() if key}
    assert places == {
        "a": "val.yaml:1",
        "a.b": "val.yaml:2",
        "a.c": "val.yaml:3",
        "a.c[0]": "val.yaml:4",
        "a.c[1]": "val.yaml:5",
    }
    assert source.place(("a", "missing", "deeper")).endswith("val.yaml:1")


def test_a_file_lies_over_what_it_extends_and_lists_replace(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text("a: {x: 1, y: 1}\nlist: [1, 2, 3]\nonly: top\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "middle.yaml").write_text("extends: ../top.yaml\na: {y: 2}\n")
    source = read(tmp_path, "extends: sub/middle.yaml\na: {z: 3}\nlist: [9]\n")

    assert source.values == {"a": {"x": 1, "y": 2, "z": 3}, "list": [9], "only": "top"}
    assert source.place(("only",)).endswith("sub/../top.yaml:3")
    assert source.place(("a", "z")).endswith("val.yaml:2")
    assert source.place(("list",)).endswith("val.yaml:3")


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("extends: val.yaml\n")

    message = "b.yaml:1: extends: goes in a circle: val.yaml → b.yaml → val.yaml. Remove one of them."
    assert refusal(tmp_path, "extends: b.yaml\n") == message


def test_a_missing_extended_file_is_named_with_the_line_that_names_it(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a: 1\nextends: ../no.yaml\n").startswith(
        "val.yaml:2: extends: no such file: '../no.yaml'"
    )


def test_variables_are_filled_in_and_typed_after(tmp_path: Path) -> None:
    text = 'n: ${N}\nflow: {n: "${N}", m: "${M:-0.5}"}\npath: ${ROOT:-/data}/val\n'
    text += "both: ${EMPTY:-yes}\nplain: $${N} costs $5\n"
    source = read(tmp_path, text, environment={"N": "7", "EMPTY": ""})

    flow = {"n": 7, "m": 0.5}
    assert source.values == {"n": 7, "flow": flow, "path": "/data/val", "both": "yes", "plain": "${N} costs $5"}


def test_an_unset_variable_is_a_problem_with_its_line(tmp_path: Path) -> None:
    source = read(tmp_path, "a: 1\nb:\n  c: ${NO_SUCH}\nd: ${bad-name}\n")

    first, second = [str(problem).removeprefix(f"{tmp_path}/") for problem in source.problems]
    assert first == "val.yaml:3: b.c: the environment has no 'NO_SUCH'. Set it, or write ${NO_SUCH:-default}."
    assert second.startswith("val.yaml:4: d: '${bad-name}' has a ${ that is neither ${NAME} nor ${NAME:-default}")


def test_what_is_wrong_with_a_replaced_value_is_wrong_no_longer(tmp_path: Path) -> None:
    assert read(tmp_path, "a: {b: '${NO_SUCH}'}\n", "a.b=1").problems == []
    assert len(read(tmp_path, "a: {b: '${NO_SUCH}'}\n", "a.c=1").problems) == 1


def test_a_key_given_twice_is_a_problem_that_names_both_lines(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\n").problems

    assert str(problem).replace(f"{tmp_path}/", "") == "val.yaml:4: a.b: is given twice, first at val.yaml:2. Keep one."


def test_options_are_read_as_yaml_and_named_as_their_place(tmp_path: Path) -> None:
    source = read(tmp_path, "a: {b: 1}\n", "a.b={min: 1, max: [2, 1e-3]}", "x.y=", "c=plain text")

    assert source.values == {"a": {"b": {"min": 1, "max": [2, 0.001]}}, "x": {"y": None}, "c": "plain text"}
    assert source.place(("a", "b", "max", 0)) == "--set a.b={min: 1, max: [2, 1e-3]}"
    assert source.place(("a",)).endswith("val.yaml:1")
    assert source.place(("x",)) == "--set x.y="


@pytest.mark.parametrize("option", ["a", "=1", "a..b=1", ".=1"])
def test_an_option_without_a_key_or_a_value_is_a_problem(tmp_path: Path, option: str) -> None:
    (problem,) = read(tmp_path, "a: 1\n", option).problems

    assert str(problem) == f"--set {option}: expected key.sub=value, as in gates.accuracy.max_drop=0.01."


def test_a_shorthand_merges_like_what_it_stands_for(tmp_path: Path) -> None:
    source = read(tmp_path, "checkpoints: [a, b]\n", "checkpoints.use=ema")

    assert source.values == {"checkpoints": {"files": ["a", "b"], "use": "ema"}}


def test_a_tag_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n").problems

    assert "the YAML tag 'tag:yaml.org,2002:python/object/apply:os.mkdir' is not read" in str(problem)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "val.yaml: is empty"),
        ("# only a comment\n", "val.yaml: is empty"),
        ("- a\n- b\n", "val.yaml: expected keys such as 'model' and 'data', got a list."),
        ("word", "val.yaml: expected keys such as 'model' and 'data', got 'word'."),
        ("a: 1\nb: [1, 2\n", "val.yaml:3: not YAML: "),
        ("a: 1\n\tb: 2\n", "val.yaml:2: not YAML: "),
        ("a: 1\n---\nb: 2\n", "val.yaml:2: not YAML: but found another document"),
        ("a: {b: ${X}}\n", "val.yaml:1: not YAML: expected ',' or '}', but got '{'. Inside"),
        ("a: &x\n  b: *x\n", "val.yaml:1: nested more than 20 levels deep. Does an alias contain itself?"),
        ("a: " + "[" * 5000, "val.yaml: nested too deeply."),
        ("a: *nowhere\n", "val.yaml:1: not YAML: found undefined alias 'nowhere'."),
        ("a: \x00\n", "val.yaml: not YAML: special characters are not allowed."),
    ],
)  # fmt: skip
def test_what_is_no_mapping_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    expected = {"no.yaml": "no such file", "": "is a folder", "latin.yaml": "latin.yaml:2: not UTF-8 text"}

    for name, message in expected.items():
        with pytest.raises(SoupError, match=message):
            read_source(tmp_path / name, environment={}, shorthands={})
