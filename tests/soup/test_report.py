"""Reports are golden files rendered from hand-made records; whatever a name holds, it is shown and not run.

`SOUP_WRITE_GOLDEN=1 pytest tests/soup/test_report.py` writes them anew; read the difference before it is committed.
"""

from __future__ import annotations

import html
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from exporters.latency import Latency
from soup.gates import Check, Verdict
from soup.junit import junit
from soup.report import (
    FileRow,
    HopRow,
    LatencyRow,
    ReleaseReport,
    bullets,
    code,
    document,
    plain,
    release_markdown,
    size_text,
    summary,
    table,
    tiny_text,
    to_html,
    value_text,
)

GOLDEN = Path(__file__).parent / "golden"
CHECKS = (
    Check("manifest.json", "files", "hash", "pass", "'manifest.json' is as it was sealed"),
    Check(
        "outputs", "torch→onnx", "outputs", "fail", "largest difference 2.00e-03", 2e-3, 1e-4, "", "onnxruntime on cpu"
    ),
    Check(
        "accuracy", "torch→onnx", "accuracy", "inconclusive", "neither shown nor excluded", 0.0, 0.005, "%", "cpu", 1600
    ),
    Check("p99", "gate", "latency", "pending", "names tensorrt on orin-nano", 8.1, 10.0, "ms", "onnxruntime on cpu"),
)
LATENCY = Latency(7.5, 8.0, 8.21, 7.6, 8.1, None, 0.99, 7.6, 7.1, 12.0, 400, 20, {"batch": 1, "loop": "closed"})
RELEASE = ReleaseReport(
    title="Release of digits_cnn",
    date="2026-11-22",
    facts=(("task", "classification"), ("metric", "accuracy")),
    checks=CHECKS,
    unit="%",
    hops=(
        HopRow("best single → soup", "torch on cpu, val", 1.2, 0.3, 0.981234, 0.8863, 41, "+0.30 points", "undecided"),
        HopRow("torch → onnx", "onnxruntime on cpu, val", 2e-3, None, None, 0.8863, 0, "0.00 points", "inconclusive"),
    ),
    latency=(LatencyRow("model.onnx", "onnxruntime on cpu", LATENCY),),
    files=(FileRow("golden.safetensors", 1_234_567, "a" * 64), FileRow("model.onnx", 999, "b" * 64)),
    verified=("model.onnx: outputs on 2,500 val samples, onnxruntime 1.31.1 on cpu",),
    pending=("model.engine was built here and has run nowhere; on the device, run: soup verify RELEASE",),
)
texts = st.text(st.sampled_from("ab1 _*`[]()<>!|&;#x~+-=.:\\/\n\"'é"), min_size=1).filter(lambda text: text.split())


def agrees(name: str, content: bytes) -> None:
    if os.environ.get("SOUP_WRITE_GOLDEN"):
        (GOLDEN / name).write_bytes(content)
    assert content.decode() == (GOLDEN / name).read_text(encoding="utf-8")


def shown(page: str, tag: str) -> str:
    found = re.search(rf"<main>.*<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    assert found, page
    return html.unescape(found.group(1))


def test_a_release_report_reads_as_its_golden_file():
    agrees("release.md", release_markdown(RELEASE).encode())


def test_a_release_page_is_its_golden_file():
    agrees("release.html", to_html(release_markdown(RELEASE), title=RELEASE.title).encode())


def test_junit_is_its_golden_file():
    agrees("junit.xml", junit(CHECKS, suite="soup export", properties={"digest": "c" * 64, "device": "cpu"}))


def test_junit_has_a_case_per_check_and_tells_inconclusive_from_pending():
    root = ET.fromstring(junit(CHECKS, suite="soup", properties={}))
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == [check.name for check in CHECKS]
    assert [child.get("type") for case in cases for child in case if child.tag == "failure"] == ["fail"]
    skipped = [child for case in cases for child in case if child.tag == "skipped"]
    assert [child.get("type") for child in skipped] == ["inconclusive", "pending"]
    assert [child.get("message").split(":")[0] for child in skipped] == ["inconclusive", "pending"]
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "1", "2")


@settings(max_examples=30, deadline=None)
@given(st.text(), st.sampled_from(get_args(Verdict)))
def test_junit_is_xml_whatever_the_messages_hold(text, verdict):
    data = junit([Check(text, text, "hash", verdict, text)], suite=text, properties={text: text})
    assert len(ET.fromstring(data).findall("./testsuite/testcase")) == 1


@settings(max_examples=200, deadline=None)
@given(texts)
def test_any_text_is_shown_literally_wherever_it_stands(text):
    expected = " ".join(text.split())
    assert shown(to_html(plain(text), title=""), "p") == expected
    assert shown(to_html(table(("name",), [(plain(text),)]), title=""), "td") == expected
    assert shown(to_html(bullets([text]), title=""), "li") == expected
    assert shown(to_html(document(text, {}), title=""), "h1") == expected


@settings(max_examples=100, deadline=None)
@given(texts)
def test_any_name_is_one_cell_of_code(text):
    page = to_html(table(("name", "size"), [(code(text), "1")]), title="")
    assert page.count("<td") == 2
    assert page.count("<code>") == 1


def test_a_page_fetches_nothing_and_runs_nothing():
    hostile = '<script>alert(1)</script> [x](javascript:alert(1)) ![x](http://a.b/c.png) <img src="http://a.b/c.png">'
    page = to_html(bullets([hostile]), title="</title><script>alert(1)</script>")
    assert not re.search(r"<script|<img|<link|<[^>]+(href|src)=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert shown(to_html("<script>alert(1)</script>", title=""), "p") == "<script>alert(1)</script>"


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_a_verdict_is_a_badge_only_where_it_stands_alone(verdict):
    page = to_html(table(("verdict", "text"), [(verdict, f"{verdict} it on")]), title="")
    assert page.count(f'<span class="badge {verdict}">') == 1


def test_columns_of_numbers_stand_right_and_the_text_is_aligned():
    assert table(("name", "val"), [("a", "88.33 %"), ("long name", "–")]) == (
        "| name      |     val |\n"
        "| --------- | ------: |\n"
        "| a         | 88.33 % |\n"
        "| long name |       – |"
    )  # fmt: skip
    assert table(("name",), []) == ""


def test_a_section_without_content_leaves_no_heading():
    assert document("T", {"": "first", "Empty": "", "Last": "text"}) == "# T\n\nfirst\n\n## Last\n\ntext\n"


def test_the_summary_leads_with_the_worst_verdict():
    assert summary(CHECKS) == "**fail** – 1 pass, 1 fail, 1 inconclusive, 1 pending"
    assert summary(CHECKS[:1]) == "**pass** – 1 pass"
    assert summary(()) == "Nothing was checked."


def test_numbers_carry_their_units():
    assert [size_text(size) for size in (999, 1000, 46_700_000, 2.5e12)] == ["999 B", "1.0 kB", "46.7 MB", "2.5 TB"]
    assert (value_text(0.88331, unit="%"), value_text(-1.5, unit=""), value_text(None, unit="%")) == (
        "88.33 %",
        "−1.5000",
        "–",
    )
    assert (tiny_text(1.23e-6), tiny_text(float("nan"))) == ("1.2e−06", "–")


def test_the_markdown_needs_no_html_to_be_read():
    assert "html_block" not in {token.type for token in MarkdownIt().enable("table").parse(release_markdown(RELEASE))}
