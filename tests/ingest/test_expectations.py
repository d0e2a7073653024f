"""Every rule speaks when, and only when, it is broken."""

from __future__ import annotations

import errno
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from great_expectations.expectations.expectation import Expectation

from mm_core.core.params import IngestParams
from mm_core.core.records import KINDS, write_bytes
from mm_core.ingest.batch_mix import CLASSES, LEAST_ROWS
from mm_core.ingest.data_docs import STYLE, DataDocs
from mm_core.ingest.expectations import RULES, Fault, Judge, rules_of
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.matte_quality import MatteQuality
from mm_core.ingest.probe import Probe, Prober
from mm_core.storage.store import open_store
from samplegen import write_drop

MATTE = MatteQuality(0.3, -0.8, 0, 0, 0, 0.0, 1.0, 0.005, 1.0, 9.0)
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
    alpha_bytes=500,
    alpha_decodes=True,
    alpha_grey=True,
    alpha_way_up=None,
    alpha_is_photo=False,
    alpha_size="64×48",
    alpha_fits=True,
    alpha_highest=1.0,
    alpha_lowest=0.0,
    alpha_binary=False,
    alpha_sha256="1" * 64,
    matte=MATTE,
)
BREAKS: dict[str, dict[str, Any]] = {
    "alpha_is_grey": {"alpha_grey": False},
    "matte_is_no_photo": {"alpha_is_photo": True},
    "matte_way_up": {"alpha_way_up": 0.2},
    "row_is_whole": {"extra_fields": 2},
    "image_inside_batch": {"image_inside": False},
    "alpha_inside_batch": {"alpha_inside": False},
    "image_exists": {"image_found": False},
    "image_not_empty": {"image_bytes": 0},
    "image_not_huge": {"image_bytes": (256 << 20) + 1},
    "image_is_an_image": {"image_recognised": False},
    "image_pixels": {"pixels": 120_000_001},
    "image_decodes": {"image_decodes": False},
    "image_checksum": {"sha256_as_declared": False},
    "image_large_enough": {"short_side": 31},
    "alpha_exists": {"alpha_found": False},
    "alpha_not_huge": {"alpha_bytes": (256 << 20) + 1},
    "alpha_decodes": {"alpha_decodes": False},
    "alpha_size": {"alpha_fits": False},
    "alpha_has_foreground": {"alpha_highest": 1 / 255},
    "alpha_has_background": {"alpha_lowest": 0.95},
    "category_known": {"category": "dinosaur"},
    "time_possible": {"taken_at_possible": False},
    "role_known": {"role": "test"},
    "caption_there": {"caption_length": 0},
    "matte_not_inverted": {"matte": replace(MATTE, inversion=0.4)},
    "matte_reaches_one": {"matte": replace(MATTE, highest=0.8)},
    "matte_reaches_zero": {"matte": replace(MATTE, lowest=0.2)},
    "matte_area": {"matte": replace(MATTE, foreground=0.999)},
    "matte_is_no_trimap": {"matte": replace(MATTE, plateau=0.3)},
    "matte_without_holes": {"matte": replace(MATTE, holes=0.01)},
    "matte_without_specks": {"matte": replace(MATTE, specks=0.01)},
    "matte_sharp_somewhere": {"matte": replace(MATTE, edge_width=0.05)},
    "matte_edge_in_photo": {"matte": replace(MATTE, edge_contrast=1.0)},
    "matte_edge_in_place": {"matte": replace(MATTE, edge_match=0.2)},
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
    assert {line["unexpected"] for line in lines.values()} == {1}
    assert {line["severity"] for line in lines.values()} == {"warning"}, "a bad row never stops a drop"
    assert set(BREAKS) == {rule.name for rule in RULES if rule.scope == "row"}


def test_the_first_broken_rule_gives_the_reason(judge_of: Any) -> None:
    row = replace(GOOD, image_decodes=False, note="cut off", short_side=3, category="x", alpha_found=False)
    assert judge_of("pixel_labeled").rows([row])[0].reason == "truncated or corrupt image"


def test_what_was_not_measured_does_not_pass_and_does_not_give_the_reason(judge_of: Any) -> None:
    """An expectation ignores null values: `image_decodes` passed for files that are no images."""
    missing = Probe(0, "a.jpg", None, None, 0, image_inside=True, image_found=False, alpha_inside=True)
    judge = judge_of("pixel_labeled")
    assert judge.rows([missing, replace(GOOD, row=1)]) == {0: Fault("missing image", "")}
    lines = {line["name"]: line for line in judge.results}
    for name in ("image_decodes", "image_large_enough", "alpha_decodes", "alpha_has_foreground"):
        assert (lines[name]["success"], lines[name]["unexpected"], lines[name]["unmeasured"]) == (False, 1, 1), name
        assert lines[name]["measured"] == 1, name
    assert lines["image_exists"]["unmeasured"] == 0 and lines["image_exists"]["measured"] == 2
    passed = {name for name, line in lines.items() if line["success"]}
    assert {"category_known", "role_known", "image_checksum"} < passed, "what a producer need not state"
    # Nothing else is wrong with this row, and it is refused.
    assert judge_of("unlabeled").rows([replace(GOOD, short_side=None)]) == {0: Fault("too small", "not measured")}


def test_the_number_of_rows_that_a_rule_was_tried_on_is_recorded(judge_of: Any) -> None:
    """Also over the pieces of a large drop; the matte of an unreadable photo is not measured."""
    judge = judge_of("pixel_labeled")
    missing = Probe(0, "a.jpg", None, None, 0, image_inside=True, image_found=False, alpha_inside=True)
    for row in (0, 1):
        judge.rows([replace(missing, row=row)])
    lines = {line["name"]: line["measured"] for line in judge.results}
    assert (lines["image_exists"], lines["image_decodes"], lines["matte_area"]) == (2, 0, 0)
    judge.whole([{"row": 0, "bad": 1, "suspect": 0, "duplicate": 0}, {"row": 1, "bad": 1, "suspect": 0}], {})
    whole = {line["name"]: line["measured"] for line in judge.results if line["scope"] == "batch"}
    assert whole == {"few_bad_rows": 1, "few_suspects": 1, "few_duplicates": 1, "category_given": 2, "soft_edges": 0}


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "checksum"])
def test_rules_about_pixels_fail_for_files_that_are_no_photos(judge_of: Any, tmp_path: Path, content: str) -> None:
    folder = write_drop(tmp_path / "inbox", "unlabeled", "b", {"pets": 2}, seed=0, size=64)
    first, second = sorted((folder / "images").iterdir())
    data = first.read_bytes()
    first.write_bytes(
        {"text": b"these are words\n" * 9, "empty": b"", "truncated": data[: len(data) // 3]}.get(content, b"x")
    )
    inbox = open_store(str(tmp_path / "inbox"), tmp_path / "cache")
    (tmp_path / "spool").mkdir()
    prober = Prober(inbox, "unlabeled/b/manifest.csv", "unlabeled", IngestParams(), tmp_path / "spool")
    rows = [ManifestRow(n, f"images/{path.name}") for n, path in enumerate((first, second))]
    if content == "checksum":
        first.unlink()
        rows[0] = replace(rows[0], sha256="0" * 64)
    judge = judge_of("unlabeled")
    assert list(judge.rows([prober(row) for row in rows])) == [0]
    lines = {line["name"]: line for line in judge.results}
    names = ("image_decodes", "image_checksum") if content == "checksum" else ("image_decodes",)
    if content in ("text", "empty"):
        names += ("image_is_an_image", "image_large_enough", "image_pixels")
    assert {name: (lines[name]["success"], lines[name]["unexpected"]) for name in names} == dict.fromkeys(
        names, (False, 1)
    )


def test_more_than_two_hundred_bad_rows_are_all_found(judge_of: Any) -> None:
    """Great Expectations' shorter result formats stop at 20 and 200."""
    probes = [replace(GOOD, row=n, short_side=10 if n % 3 else 50) for n in range(1200)]
    faults = judge_of("unlabeled").rows(probes)
    assert sorted(faults) == [n for n in range(1200) if n % 3]
    assert faults[1].detail == "64×48 pixels"


def test_a_reviewed_matte_is_not_suspected_again(judge_of: Any) -> None:
    rows = [replace(GOOD, row=n, matte=replace(MATTE, inversion=0.4)) for n in range(3)]
    rows[2] = replace(rows[2], category="dinosaur")
    faults = judge_of("pixel_labeled").rows(rows, reviewed={1, 2})
    assert {n: f.reason for n, f in faults.items()} == {0: "suspect matte: inverted", 2: "unknown category"}
    assert faults[0].suspect and not faults[2].suspect
    assert "inversion 0.400" in faults[0].detail and "edge contrast 9.000" in faults[0].detail


def whole(bad: int, duplicates: int, good: int, suspects: int = 0, **fields: Any) -> list[dict[str, Any]]:
    verdicts = [(1, 0, 0)] * bad + [(0, 1, 0)] * suspects + [(0, 0, 1)] * duplicates + [(0, 0, 0)] * good
    return [
        {"row": n, "bad": b, "suspect": s, "duplicate": d, "category": "pets", "alpha_binary": False} | fields
        for n, (b, s, d) in enumerate(verdicts)
    ]


def test_a_drop_is_held_for_bad_rows_alone(judge_of: Any) -> None:
    judge = judge_of("pixel_labeled", max_reject_share=0.5)
    assert judge.whole(whole(5, 0, 5), {}) is None
    assert judge.whole(whole(6, 0, 4), {}) == "too many bad rows"
    judge = judge_of("pixel_labeled")
    assert judge.whole(whole(0, 9, 1, category=None, alpha_binary=True), {}) is None
    failed = {line["name"] for line in judge.results if not line["success"]}
    assert failed == {"few_duplicates", "category_given", "soft_edges"}


def test_suspects_alone_hold_a_drop_only_where_most_are(judge_of: Any) -> None:
    assert judge_of("pixel_labeled", max_reject_share=0.3).whole(whole(1, 0, 4, suspects=5), {}) is None
    assert judge_of("pixel_labeled").whole(whole(1, 0, 3, suspects=6), {}) == "too many suspect mattes"


@pytest.mark.parametrize("measure", CLASSES)
def test_a_drop_of_another_mix_is_a_warning(judge_of: Any, measure: str) -> None:
    """Known answer: the same mix passes, one class alone does not; a few rows, or a young catalog, say nothing."""
    first, second, third = CLASSES[measure][:3]
    before = {measure: {first: 300, second: 150, third: 50}}

    def failed(counts: dict[str, int], before: Any = before) -> set[str]:
        names = [name for name, count in counts.items() for _ in range(count)]
        rows = whole(0, 0, len(names))
        for row, name in zip(rows, names, strict=True):
            row[f"{measure}_class"] = name
        judge = judge_of("unlabeled")
        assert judge.whole(rows, before) is None, "never holds"
        return {line["name"] for line in judge.results if not line["success"]}

    assert failed({first: 30, second: 15, third: 5}) == set()
    assert failed({first: 24, second: 10, third: 10}) == set(), "as chance has it"
    assert failed({third: 50}) == {f"{measure}_mix"}
    assert failed({third: LEAST_ROWS - 1}) == set()
    assert failed({third: 50}, {measure: {first: LEAST_ROWS - 1}}) == set()


def test_data_docs_list_every_batch(tmp_path: Path) -> None:
    for batch in ("first", "second, with ü"):
        docs = DataDocs(tmp_path / "docs")
        judge = Judge(IngestParams(), "unlabeled", batch, docs)
        judge.rows([replace(GOOD, short_side=3)])
        judge.whole(whole(1, 0, 5), {})
        docs.build()
    pages = sorted(path.parts[-3] for path in (tmp_path / "docs" / "validations").rglob("*.html"))
    assert pages == ["first", "first", "second, with ü", "second, with ü"]
    index = (tmp_path / "docs" / "index.html").read_text()
    links = re.findall(r'href="(validations/unlabeled[^"]*)"', index)
    assert len(links) == 4 and all((tmp_path / "docs" / unquote(link)).is_file() for link in links)
    assert index.count("Failed") == 2 and index.count("Success") == 2, "a row was too small; no drop was held"
    for page in (tmp_path / "docs").rglob("*.html"):
        text = page.read_text()
        assert text.count(STYLE) == 1, page
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", text), "readable without a network"


def test_a_page_that_a_full_disk_refused_is_written_by_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Great Expectations logged a traceback, left half a page, ended without an error and never wrote it again."""
    full = {"first"}

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".html" and full & set(path.parts):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, data)

    monkeypatch.setattr("mm_core.ingest.page_folder.write_bytes", write)
    for batch in ("first", "second"):
        docs = DataDocs(tmp_path / "docs")
        Judge(IngestParams(), "unlabeled", batch, docs).rows([GOOD])
        with pytest.raises(OSError, match="No space left") if full else nullcontext():
            docs.build()
        full.clear()
    assert {path.parts[-3] for path in (tmp_path / "docs" / "validations").rglob("*.html")} == {"first", "second"}
    assert "Traceback" not in caplog.text


def test_a_drop_judged_in_pieces_has_the_sums(judge_of: Any) -> None:
    pieces, whole_drop = judge_of("unlabeled"), judge_of("unlabeled")
    probes = [replace(GOOD, row=n, short_side=3 if n % 4 == 0 else 50) for n in range(12)]
    found = {row: fault for start in (0, 5, 10) for row, fault in pieces.rows(probes[start : start + 5]).items()}
    assert found == whole_drop.rows(probes) and pieces.results == whole_drop.results


def test_the_work_per_expectation_does_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library compares an expectation with its stored copy a few times, not with each other expectation."""
    compared: list[object] = []
    equal = Expectation.__eq__

    def counted(self: Expectation, other: object) -> bool:
        compared.append(self)
        return equal(self, other)

    monkeypatch.setattr(Expectation, "__eq__", counted)
    docs = DataDocs(tmp_path / "docs")
    rules = rules_of("unlabeled", "row")
    expectations = len(rules) + 1  # and one for values that could not be measured
    for batch in ("first", "second"):
        compared.clear()
        Judge(IngestParams(), "unlabeled", batch, docs).rows([GOOD])
        assert len(compared) <= 4 * expectations
