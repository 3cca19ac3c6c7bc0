from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters import ExportError
from exporters.calibration_cache import calibration_cache, version_number


def scales(cache: bytes) -> dict[str, float]:
    """Read as published readers do: struct.unpack('!f', bytes.fromhex(…)) after the last colon."""
    lines = cache.decode().splitlines()[1:]
    return {
        name: struct.unpack("!f", bytes.fromhex(bits))[0] for name, _, bits in (line.rpartition(": ") for line in lines)
    }


def test_the_text_is_a_version_line_and_a_line_per_tensor_with_the_bits_of_its_scale() -> None:
    """3c010204 is 1 / 127 in float32: sign 0, exponent 120, and a fraction worked out by hand below."""
    cache = calibration_cache({"input": (-0.5, 1.0), "(Unnamed Layer* 1) [Conv]_output": (0.0, 127.0)}, version="8.6.2")

    assert cache == b"TRT-8602-EntropyCalibration2\n(Unnamed Layer* 1) [Conv]_output: 3f800000\ninput: 3c010204\n"
    by_hand = (1 + 0x010204 / 2**23) * 2.0 ** (0x78 - 127)
    assert abs(by_hand * 127 - 1) < 1e-7


@pytest.mark.parametrize(
    ("version", "number"),
    [("8.6.1", 8601), ("8.5.2.2", 8502), ("10.3.0", 100300), ("10.13.3.9", 101303), ("10.9", 100900)],
)
def test_the_version_is_written_as_nvidia_counts_it(version: str, number: int) -> None:
    assert version_number(version) == number


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        st.tuples(st.floats(-1e4, 1e4), st.floats(0.001, 1e4)).map(sorted),
        min_size=1,
    )
)
def test_a_scale_is_the_greater_magnitude_over_127_in_float32(ranges: dict[str, tuple[float, float]]) -> None:
    read = scales(calibration_cache(ranges, version="10.3.0"))

    assert list(read) == sorted(ranges)
    for name, (low, high) in ranges.items():
        assert read[name] == np.float32(max(abs(low), abs(high)) / 127)


@pytest.mark.parametrize(
    "ranges",
    [
        {},
        {"x": (0.0, 0.0)},
        {"x": (float("nan"), 1.0)},
        {"x": (0.0, float("inf"))},
        {"x": (2.0, 1.0)},
        {"a\nb": (0.0, 1.0)},
    ],
)
def test_ranges_without_a_scale_are_refused(ranges: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ExportError, match="calibration cache: no ") as raised:
        calibration_cache(ranges, version="10.3.0")

    assert raised.value.kind == "input"
