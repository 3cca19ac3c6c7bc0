"""Checks become JUnit XML, which pipelines read: pure, so that equal records give equal bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence

from soup.gates import Check

_XML_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(checks: Sequence[Check], *, suite: str, properties: Mapping[str, str]) -> bytes:
    """JUnit XML with a case per check: fail is a failure; inconclusive and pending are skipped, and say which."""
    counts = Counter(check.verdict for check in checks)
    skipped = counts["inconclusive"] + counts["pending"]
    numbers = {"tests": str(len(checks)), "failures": str(counts["fail"]), "errors": "0", "skipped": str(skipped)}
    root = ET.Element("testsuites", numbers)
    node = ET.SubElement(root, "testsuite", {"name": _xml(suite), **numbers})
    _properties(node, properties)
    for check in checks:
        _case(node, check, suite=suite)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(node: ET.Element, check: Check, *, suite: str) -> None:
    case = ET.SubElement(node, "testcase", {"classname": _xml(f"{suite}.{check.hop}"), "name": _xml(check.name)})
    facts = {
        "verdict": check.verdict, "kind": check.kind, "measured": check.measured, "limit": check.limit,
        "unit": check.unit or None, "where": check.where, "samples_needed": check.samples_needed,
    }  # fmt: skip
    _properties(case, {name: str(value) for name, value in facts.items() if value is not None})
    if check.verdict != "pass":
        tag, label = ("failure", "") if check.verdict == "fail" else ("skipped", f"{check.verdict}: ")
        ET.SubElement(case, tag, {"type": check.verdict, "message": _xml(label + check.message)})


def _properties(node: ET.Element, properties: Mapping[str, str]) -> None:
    holder = ET.SubElement(node, "properties")
    for name, value in properties.items():
        ET.SubElement(holder, "property", {"name": _xml(name), "value": _xml(value)})


def _xml(text: str) -> str:
    """XML 1.0 cannot hold most control characters, not even escaped."""
    return _XML_ILLEGAL.sub("\ufffd", text)
