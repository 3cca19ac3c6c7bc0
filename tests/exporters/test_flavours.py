from __future__ import annotations

from exporters.flavours import explain, reasons

NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/x.cpp:250 "
    "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)
NO_PROFILE = (
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no "
    "optimization profile has been defined. In validate at /_src/optimizer/api/network.cpp:4023)"
)


def test_errors_are_told_once_and_without_the_places_in_nvidias_sources() -> None:
    records = [("ERROR", NO_PROFILE), ("INFO", "fine"), ("WARNING", "slow"), ("INTERNAL_ERROR", NO_PROFILE)]

    assert reasons(records) == ["Network has dynamic or shape inputs, but no optimization profile has been defined"]


def test_the_complaint_about_a_missing_driver_is_dropped_where_there_is_another_reason() -> None:
    assert explain([("ERROR", NO_DRIVER), ("ERROR", "no memory.")]) == "no memory"


def test_the_complaint_about_a_missing_driver_is_kept_where_it_is_the_only_reason() -> None:
    assert "cudaError 35" in explain([("ERROR", NO_DRIVER)])


def test_a_failure_without_any_logged_error_says_so() -> None:
    assert explain([("VERBOSE", "Parsing node")]) == "no reason was logged"
