"""Labels of images that have any number of them: what a labels.csv may hold, and how each slip in one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup import SoupError
from soup.multilabel_csv import read_multilabel

WHERE = Path("val.csv")


def read(*cells, classes=None):
    rows = {line: {"path": f"{line}.png", "labels": cell} for line, cell in enumerate(cells, start=2)}
    truth, names = read_multilabel(WHERE, ["path", "labels"], rows, classes=classes)
    assert truth.dtype == bool
    return truth.astype(int).tolist(), names


def read_columns(header, *lines, classes=None):
    rows = {line: dict(zip(header, cells, strict=False)) for line, cells in enumerate(lines, start=2)}
    truth, names = read_multilabel(WHERE, header, rows, classes=classes)
    return truth.astype(int).tolist(), names


@pytest.mark.parametrize("cells", [("cat;dog", "", "ant"), ("cat dog", "", "ant"), (" dog ;cat; ", "", "ant;ant")])
def test_names_are_numbered_in_sorted_order_and_an_empty_cell_has_none(cells):
    assert read(*cells) == ([[0, 1, 1], [0, 0, 0], [1, 0, 0]], ("ant", "cat", "dog"))


def test_names_may_hold_spaces_where_semicolons_separate():
    assert read("traffic light;bus", "traffic light", "bus") == ([[1, 1], [0, 1], [1, 0]], ("bus", "traffic light"))


def test_numbers_count_up_to_the_largest_or_to_the_model():
    assert read("0;3", "1") == ([[1, 0, 0, 1], [0, 1, 0, 0]], None)
    assert read("0 1", "", classes=3) == ([[1, 1, 0], [0, 0, 0]], None)
    assert read("", "", classes=2) == ([[0, 0], [0, 0]], None)


def test_the_models_classes_decide_the_order():
    """Also of a split that lacks one, where the sorted names would be other columns."""
    assert read("cat", "ant", classes=["dog", "cat", "ant"]) == ([[0, 1, 0], [0, 0, 1]], ("dog", "cat", "ant"))
    assert read("2", "0 1", classes=["dog", "cat", "ant"]) == ([[0, 0, 1], [1, 1, 0]], ("dog", "cat", "ant"))
    assert read("7 3", classes=["7", "3", "1"]) == ([[1, 1, 0]], ("7", "3", "1"))


@given(
    st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=8).filter(any), st.sampled_from([";", " ", " ; "])
)
def test_what_is_written_is_read(rows, separator):
    truth, names = read(*(separator.join(sorted(row)) for row in rows))
    assert [{name for name, has in zip(names, row, strict=True) if has} for row in truth] == rows


def test_columns_of_0_and_1_keep_their_order():
    header = ["path", "zebra", "ant", "group"]
    lines = ["a.png", "1", "0", "g"], ["b.png", "0", "0", "g"]
    assert read_columns(header, *lines) == ([[1, 0], [0, 0]], ("zebra", "ant"))
    assert read_columns(header, *lines, classes=["ant", "zebra"]) == ([[0, 1], [0, 0]], ("ant", "zebra"))
    assert read_columns(header, *lines, classes=2) == ([[1, 0], [0, 0]], ("zebra", "ant"))


@pytest.mark.parametrize(
    ("cells", "classes", "message"),
    [
        (("", ""), None, "no row has a label"),
        (("0;cat", "dog"), None, "labels line 2 'cat'; line 3 'dog' are not whole numbers from 0"),
        (("0", "1.5", "-1"), None, "line 3 '1.5'; line 4 '-1' are not whole numbers"),
        (("0;1", "99999999"), None, "labels line 3 '99999999' are none of 100,000,000 classes"),
        (("0;1", "3", "9"), 3, "labels line 3 '3'; line 4 '9' are none of 3 classes"),
        (("cat;dgo", "dog"), ["cat", "dog"], r"labels line 2 'dgo' are none of 2 classes \(cat; dog\)"),
        (("2",), ["cat", "dog"], "line 2 '2' are none of 2 classes"),
        (("cat", "dog"), 3, r"names 2 classes \(cat; dog\), expected 3"),
        (("cat;dog", "cat dog"), None, "line 3 'cat dog' are made of others. Separate labels by ';' throughout"),
        (("0;1", "0,1"), None, "line 3 '0,1' are made of others"),
        (("cat,dog", "cat|dog"), None, "line 2 'cat,dog'; line 3 'cat|dog' hold a ',' or '|'"),
        (tuple(["0"] + ["x"] * 12), None, "line 12 'x'; and 2 more"),
    ],
)
def test_bad_labels_are_told_with_their_lines(cells, classes, message):
    with pytest.raises(SoupError, match=message) as raised:
        read(*cells, classes=classes)
    assert str(raised.value).startswith("val.csv: ")


@pytest.mark.parametrize(
    ("header", "lines", "classes", "message"),
    [
        (["path"], [["a"]], None, r"no column labels, expected path,labels\[,group\], or one column of 0 and 1"),
        (["path", "label"], [["a", "1"]], None, "A column label is for images of one class each"),
        (["path", "cat", "cat"], [["a", "1", "0"]], None, "columns without a name of their own: 'cat'"),
        (["path", "", "cat"], [["a", "0", "1"]], None, "columns without a name of their own: ''"),
        (
            ["path", "cat", "note"],
            [["a", "1", "x"], ["b", "-1"]],
            None,
            "3 cells are not 0 or 1: line 2 note 'x'; line 3 cat",
        ),
        (["path", "cat"], [["a", "1"]], ["cat", "dog"], "has the classes cat, expected cat; dog"),
        (["path", "cat"], [["a", "1"]], 2, "has the classes cat, expected 2"),
    ],
)
def test_bad_columns_are_told(header, lines, classes, message):
    with pytest.raises(SoupError, match=message):
        read_columns(header, *lines, classes=classes)


def test_a_mask_is_one_row_for_each_line_of_the_file():
    truth, _ = read_multilabel(WHERE, ["path", "labels"], {7: {"path": "a"}, 3: {"path": "b", "labels": "1"}})
    assert np.array_equal(truth, [[False, False], [False, True]])
