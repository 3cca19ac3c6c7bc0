"""A difference of hundreds of tensors is told whole, and in a few lines."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import mobilenet_v3_small, resnet18, resnet34, wide_resnet50_2

from soup.headers import FEW, differences
from soup.models import tensor_table

NAMES = st.from_regex(r"\A[ab](\.[01]){0,2}\.w[12]\Z")


def test_another_network_is_one_sentence_with_the_modules_of_both() -> None:
    """Correctness 14."""
    assert differences(tensor_table(mobilenet_v3_small()), tensor_table(resnet18()), like="the model") == [
        "shares no tensor with the model: it is of another network. It has 'features.*', 'classifier.*'; the model has "
        "'conv1.weight', 'bn1.*', 'layer1.*', 'layer2.*', 'layer3.*', 'layer4.*', 'fc.*'."
    ]


def test_modules_that_lack_altogether_stand_for_their_tensors() -> None:
    assert differences(tensor_table(resnet18()), tensor_table(resnet34()), like="the model") == [
        "lacks 96 tensors that the model has: 'layer1.2.*', 'layer2.2.*', 'layer2.3.*', 'layer3.2.*', 'layer3.3.*', "
        "'layer3.4.*', 'layer3.5.*', 'layer4.2.*'."
    ]


def test_shapes_and_dtypes_that_differ_in_many_tensors_are_one_sentence_each_that_names_all() -> None:
    table, wide = tensor_table(resnet18()), tensor_table(wide_resnet50_2())
    *_, shapes = differences(table, wide, like="the model")
    assert shapes.startswith(
        "96 tensors have another shape than in the model. (64, 64, 3, 3) for (128, 64, 1, 1): 'layer1.0.conv1"
    )
    assert shapes.count("'") == 2 * 96
    (dtypes,) = differences({name: (shape, "int64") for name, (shape, _) in table.items()}, table, like="the model")
    assert dtypes.startswith("102 tensors have another dtype than in the model. int64 for float32: 'conv1.weight', ")


@given(names=st.sets(NAMES, min_size=1), cut=st.data())
@settings(max_examples=60, deadline=None)
def test_grouped_names_stand_for_exactly_the_tensors_that_lack(names: set[str], cut: st.DataObject) -> None:
    """Correctness 14."""
    expected = dict.fromkeys(sorted(names), ((1,), "float32"))
    kept = cut.draw(st.sets(st.sampled_from(sorted(names))))
    lines = differences({name: expected[name] for name in expected if name in kept}, expected, like="the model")
    missing = names - kept
    if not missing or not kept:
        return
    shown = lines[0].partition(": ")[2].rstrip(".").split(", ")
    patterns = [one.strip("'") for one in shown]
    covered = [
        name for name in names for one in patterns if name == one or (one.endswith(".*") and name.startswith(one[:-1]))
    ]
    assert sorted(covered) == sorted(missing)
    assert len(missing) > FEW or "*" not in lines[0]
