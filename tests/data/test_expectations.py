"""Every rule speaks when, and only when, it is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mm_core.data.expectations import RULES, DataDocs, Judge, rules_of
from mm_core.data.probe import Probe
from mm_core.params import IngestParams
from mm_core.records import KINDS

GOOD = Probe(
    row=0,
    image="a.jpg",
    category="pets",
    role=None,
    extra_fields=0,
    caption_length=12,
    image_inside=True,
    image_found=True,
    image_bytes=1000,
    image_recognised=True,
    pixels=64 * 48,
    image_decodes=True,
    width=64,
    height=48,
    short_side=48,
    format="JPEG",
    sha256="0" * 64,
    phash="0" * 16,
    alpha_inside=True,
    alpha_found=True,
    alpha_decodes=True,
    alpha_size="64×48",
    alpha_fits=True,
    alpha_highest=1.0,
    alpha_lowest=0.0,
    alpha_binary=False,
    alpha_sha256="1" * 64,
)
BREAKS: dict[str, dict[str, Any]] = {
    "row_is_whole": {"extra_fields": 2},
    "image_inside_batch": {"image_inside": False},
    "alpha_inside_batch": {"alpha_inside": False},
    "image_exists": {"image_found": False},
    "image_not_empty": {"image_bytes": 0},
    "image_is_an_image": {"image_recognised": False},
    "image_pixels": {"pixels": 120_000_001},
    "image_decodes": {"image_decodes": False},
    "image_checksum": {"sha256_as_declared": False},
    "image_large_enough": {"short_side": 31},
    "alpha_exists": {"alpha_found": False},
    "alpha_decodes": {"alpha_decodes": False},
    "alpha_size": {"alpha_fits": False},
    "alpha_has_foreground": {"alpha_highest": 1 / 255},
    "alpha_has_background": {"alpha_lowest": 0.95},
    "category_known": {"category": "dinosaur"},
    "role_known": {"role": "test"},
    "caption_there": {"caption_length": 0},
}


@pytest.fixture
def judge_of(tmp_path: Path) -> Any:
    return lambda kind, **params: Judge(IngestParams(**params), kind, "b", DataDocs(tmp_path / "docs"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_rule_takes_out_the_row_that_breaks_it(judge_of: Any, kind: str) -> None:
    rules = rules_of(kind, "row")
    probes = [replace(GOOD, row=n, **BREAKS[rule.name]) for n, rule in enumerate(rules)]
    probes += [replace(GOOD, row=len(rules)), replace(GOOD, row=len(rules) + 1, category=None, role="eval")]
    judge = judge_of(kind)
    faults = judge.rows(probes)
    assert {row: fault.reason for row, fault in faults.items()} == {n: rule.reason for n, rule in enumerate(rules)}
    lines = {line["name"]: line for line in judge.results}
    assert set(lines) == {rule.name for rule in rules}
    assert all(line["unexpected"] == 1 and not line["success"] for line in lines.values())
    assert {line["severity"] for line in lines.values()} == {"warning"}, "a bad row never stops a drop"
    assert set(BREAKS) == {rule.name for rule in RULES if rule.scope == "row"}


def test_the_first_broken_rule_gives_the_reason(judge_of: Any) -> None:
    row = replace(GOOD, image_decodes=False, note="cut off", short_side=3, category="x", alpha_found=False)
    assert judge_of("pixel_labeled").rows([row])[0].reason == "truncated or corrupt image"


def test_what_was_not_measured_is_not_judged(judge_of: Any) -> None:
    missing = Probe(0, "a.jpg", None, None, 0, image_inside=True, image_found=False, alpha_inside=True)
    assert judge_of("pixel_labeled").rows([missing])[0].reason == "missing image"


def test_more_than_two_hundred_bad_rows_are_all_found(judge_of: Any) -> None:
    """Great Expectations' shorter result formats stop at 20 and 200."""
    probes = [replace(GOOD, row=n, short_side=10 if n % 3 else 50) for n in range(1200)]
    faults = judge_of("unlabeled").rows(probes)
    assert sorted(faults) == [n for n in range(1200) if n % 3]
    assert faults[1].detail == "64×48 pixels"


def whole(bad: int, duplicates: int, good: int, **fields: Any) -> list[dict[str, Any]]:
    verdicts = [(1, 0)] * bad + [(0, 1)] * duplicates + [(0, 0)] * good
    return [
        {"row": n, "quarantined": q, "duplicate": d, "category": "pets", "alpha_binary": False} | fields
        for n, (q, d) in enumerate(verdicts)
    ]


def test_a_drop_is_held_for_bad_rows_alone(judge_of: Any) -> None:
    judge = judge_of("pixel_labeled", max_reject_share=0.5)
    assert judge.whole(whole(5, 0, 5)) is None
    assert judge.whole(whole(6, 0, 4)) == "too many bad rows"
    judge = judge_of("pixel_labeled")
    assert judge.whole(whole(0, 9, 1, category=None, alpha_binary=True)) is None
    failed = {line["name"] for line in judge.results if not line["success"]}
    assert failed == {"few_duplicates", "category_given", "soft_edges"}


def test_data_docs_list_every_batch(tmp_path: Path) -> None:
    for batch in ("first", "second, with ü"):
        docs = DataDocs(tmp_path / "docs")
        judge = Judge(IngestParams(), "unlabeled", batch, docs)
        judge.rows([replace(GOOD, short_side=3)])
        judge.whole(whole(1, 0, 5))
        docs.build()
    pages = sorted(path.parts[-3] for path in (tmp_path / "docs" / "validations").rglob("*.html"))
    assert pages == ["first", "first", "second, with ü", "second, with ü"]
    index = (tmp_path / "docs" / "index.html").read_text()
    assert index.count("validations/unlabeled") >= 4
