"""The HTML page on a made-up cycle, on a bare workspace, and against hostile text."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_workspace import Blurred, make

from mm_core.core.errors import BlobDamaged, BlobNotFound, InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, KINDS, Report, Verdict, write_json
from mm_core.core.settings import Settings
from mm_core.eval import report as report_module
from mm_core.eval.evaluate import evaluate_models
from mm_core.eval.gate import decide
from mm_core.eval.heat_table import number
from mm_core.eval.report import headline, write_html
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.seals import seal_folder
from mm_core.storage.store import LocalStore, blob_key

ERRORS = {"simple": 0.6, "hard": 0.5, "semi": 0.4, "multimodal": 0.25}
QUICK = Params().gate.model_copy(update={"resamples": 400})
HOSTILE = "<script>alert(1)</script>.jpg"


def cycle(root: Path, *, photos: int = 8, size: int = 64, champion: bool = True) -> tuple[Layout, LocalStore, Catalog]:
    """A whole cycle's files, by the real evaluation and gate; the catalog by hand."""
    layout, store, truths = make(root, per_category=photos, size=size)
    inputs = {
        "catalog": {"samples": 1, "labels": 0, "features": 0},
        "champion": {"version": "4", "digest": "c" * 64, "files": {}} if champion else None,
        "anchor": {"version": "1", "digest": "a" * 64, "files": {}} if champion else None,
    }
    frozen = json.loads((layout.snapshot / "snapshot.json").read_text())
    write_json(layout.snapshot / "snapshot.json", frozen | inputs)
    models = {(stage, "float"): Blurred(truths, error) for stage, error in ERRORS.items()}
    models["multimodal", "int8"] = Blurred(truths, 0.251)
    if champion:
        models |= {(role, p): Blurred(truths, 0.45) for role in ("champion", "anchor") for p in ("float", "int8")}

    report = evaluate_models(StorageRun(Params(), layout), models, Report("evaluate", seconds=31.5))
    report.write(layout.stage_report("evaluate"))
    for index, stage in enumerate(TRAIN_STAGES):
        speed = {f"{stage}/images_per_s": 21.5 + index}
        Report(f"train-{stage}", seconds=40.0 + 12 * index, metrics=speed).write(layout.stage_report(f"train-{stage}"))
    write_json(layout.verdict, decide(QUICK, layout, inputs).model_dump())

    frame = pd.read_parquet(layout.snapshot / "eval.parquet")
    # Easy and difficult photos in every category.
    frame["difficulty"] = np.random.default_rng(0).permutation(np.linspace(0, 1, len(frame)))
    layout.split.mkdir()
    frame[::2].to_parquet(layout.split / "simple.parquet")
    frame[1::2].to_parquet(layout.split / "hard.parquet")
    catalog = Catalog(layout.settings.store)
    rows = frame.to_dict("records")
    catalog.add("samples", [{"id": r["sample_id"], "kind": "pixel_labeled", "category": r["category"]} for r in rows])
    catalog.add("labels", [{"id": r["sample_id"], "sample_id": r["sample_id"]} for r in rows[:9]])
    store.put(
        "quarantine/shown",
        store.fetch(f"blobs/{rows[0]['sample_id'][:2]}/{rows[0]['sample_id'][2:4]}/{rows[0]['sample_id']}"),
    )
    store.put("quarantine/broken", b"<html>not found</html>")
    kept = ["quarantine/shown", "quarantine/broken", "quarantine/gone", None]
    common = {
        "kind": "pixel_labeled",
        "batch": "2026-11-15",
        "verdict": "quarantine",
        "rejected_at": "2026-11-15T00:00",
    }
    catalog.add(
        "rejects",
        [
            common | {"key": str(i), "row": i, "image": f"images/{i}.jpg", "reason": "matte is empty", "where": where}
            | {"detail": "no pixel above 0.02"}
            for i, where in enumerate(kept)
        ]
        + [common | {"key": "x", "row": 9, "image": HOSTILE, "reason": "not a picture", "detail": "starts with <html>"}]
        + [common | {"key": "d", "row": 10, "image": "again.jpg", "verdict": "duplicate", "reason": "same bytes"}],
    )  # fmt: skip
    return layout, store, catalog


def page_of(layout: Layout) -> str:
    write_html(StorageRun(Params(), layout), Report("report"))
    return layout.html_report.read_text()


class Checker(HTMLParser):
    """Every opened tag is closed, in order."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, str]:
    parts = cycle(tmp_path_factory.mktemp("cycle"))
    return parts[0], page_of(parts[0])


def test_counts_are_those_of_whole_tables(tmp_path: Path) -> None:
    """The oracle counts rows in Python."""
    catalog, rng = Catalog(str(tmp_path)), np.random.default_rng(3)
    names = [*ALL_CATEGORIES[:2], "", None]
    samples = [
        {"id": f"{n}", "kind": KINDS[rng.integers(3)], "category": names[rng.integers(4)], "batch": f"b{n % 7}"}
        | {"accepted_at": f"2026-01-0{1 + n % 3}"}
        for n in range(200)
    ]
    labels = [
        {"id": f"{n}", "sample_id": f"{rng.integers(60)}", "withdrawn_at": "2026-02-01" if rng.random() < 0.5 else None}
        for n in range(120)
    ]
    assert report_module._counts(catalog) == {"kinds": KINDS, "rows": [], "samples": 0, "labelled": 0}
    catalog.add("samples", samples)
    catalog.add("labels", labels)
    result = report_module._counts(catalog)
    assert result["samples"] == 200
    assert result["labelled"] == len({row["sample_id"] for row in labels if row["withdrawn_at"] is None})
    expected = Counter((row["category"] or "unknown", row["kind"]) for row in samples)
    counted = {row["category"]: dict(zip(KINDS, row["counts"], strict=True)) for row in result["rows"]}
    assert {(c, kind): n for c, counts in counted.items() for kind, n in counts.items() if n} == expected
    layout = Layout(Settings.from_env(tmp_path / "workspace"))
    assert ("newest batch", "b6") in report_module._about(layout, catalog, None)


def test_whole_cycle(whole: tuple[Layout, str]) -> None:
    layout, page = whole
    assert "<strong>PROMOTE</strong>" in page
    images = checked(page).images
    # 14 examples of photo, truth, four stages and champion; 14 of simple and hard; one that quarantine can show
    assert len(images) == 14 * 7 + 14 + 1
    assert all(src.startswith("data:image/webp;base64,") for src in images)
    for category in ALL_CATEGORIES:
        assert category.replace("_", " ") in page
    assert page.count('<td class="pass"') == 4 * len(ALL_CATEGORIES)
    assert f"<b>workspace</b> {layout.root}" in page
    for name in ("workspace", "newest batch", "date"):
        assert page.index(f"<b>{name}</b>") < page.index("<strong>PROMOTE</strong>"), (
            "the page starts with what it is about"
        )
    assert '<div class="bar blind">' in page, "the blind matte stands beside the stages"


@pytest.mark.parametrize(
    ("decision", "basis", "against", "result", "words"),
    [
        ("REJECT", "bootstrap", "floor", "fail", "below the floor"),
        ("REJECT", "bootstrap", "blind", "fail", "worse than the blind matte"),
        ("REJECT", "bootstrap", "float", "fail", "A loss is shown"),
        ("REJECT", "paired", "champion", "fail", "A loss is shown"),
        ("INCONCLUSIVE", "bootstrap", "floor", "unclear", "not settled whether the first model"),
        ("INCONCLUSIVE", "paired", "champion", "unclear", "Neither a sufficient gain nor a loss"),
        ("INCONCLUSIVE", "paired", "champion", "pass", "A gain is shown, but people must look"),
        ("INCONCLUSIVE", "paired", "", "", "no scores that can be compared"),
        ("PROMOTE", "paired", "champion", "pass", "may ship"),
    ],
)
def test_the_headline_follows_the_verdict(  # noqa: PLR0913  the columns of the table
    whole: tuple[Layout, str], decision: str, basis: str, against: str, result: str, words: str
) -> None:
    verdict = Verdict.model_validate_json(whole[0].verdict.read_text())
    cell = verdict.cells[0].model_copy(update={"against": against, "result": result})
    cells = [cell, *verdict.cells[1:]] if against else []
    assert words in headline(verdict.model_copy(update={"decision": decision, "basis": basis, "cells": cells}))


def test_the_page_has_every_reason(tmp_path: Path) -> None:
    """What got worse is listed after the losses, of which there may be many."""
    layout = cycle(tmp_path, photos=2)[0]
    verdict = Verdict.model_validate_json(layout.verdict.read_text())
    reasons = [f"reason {number}" for number in range(30)]
    layout.verdict.write_text(verdict.model_copy(update={"reasons": reasons}).model_dump_json())
    page = page_of(layout)
    checked(page)
    assert all(f"<li>{reason}</li>" in page for reason in reasons)


def test_the_blind_matte_stands_in_every_table_of_scores(whole: tuple[Layout, str]) -> None:
    layout, page = whole
    rows = Report.read(layout.stage_report("evaluate")).tables["per_category"]
    ours, blind = (
        {row["category"]: row for row in rows if (row["model"], row["precision"]) == key}
        for key in (("multimodal", "int8"), ("blind", "float"))
    )
    what_ships, _, rest = page.partition("Stage by stage")
    fidelity = rest.partition("Float and int8, and the anchor")[2]
    for category in ALL_CATEGORIES:
        title = category.replace("_", " ")
        first, second = (part.partition(f"<th>{title}")[2].partition("</tr>")[0] for part in (what_ships, fidelity))
        for metric in ("mse", "maxf", "biou", "conn"):
            value = number(blind[category][metric])
            assert f"<small>blind {value}</small>" in first
            assert f"{number(ours[category][metric])}<br>{value}</td>" in second


def test_one_page_is_kept(whole: tuple[Layout, str]) -> None:
    layout, _ = whole
    assert len(list(layout.reports.glob("*.html"))) == 1


def test_both_sets_of_each_category_are_counted_and_drawn(whole: tuple[Layout, str]) -> None:
    layout, page = whole
    shown = page.partition("Simple and hard</h2>")[2].partition("</section>")[0]
    sets = {name: pd.read_parquet(layout.split / f"{name}.parquet") for name in ("simple", "hard")}
    for category in ALL_CATEGORIES:
        rows = {name: frame[frame["category"] == category] for name, frame in sets.items()}
        row = shown.partition(f"<th>{category.replace('_', ' ')}</th>")[2].partition("</tr>")[0]
        cells = (len(rows["simple"]), len(rows["hard"]), f"{rows['hard']['difficulty'].min():.2f}")
        assert row.startswith("".join(f"<td>{cell}</td>" for cell in cells))
        heights = [float(height) for height in re.findall(r"height:([0-9.]+)%", row)]
        edges = np.linspace(0, 1, len(heights) // 2 + 1)
        counts = [np.histogram(rows[name]["difficulty"], edges)[0] for name in ("hard", "simple")]
        drawn = np.array(heights).reshape(-1, 2).T
        assert np.allclose(drawn, 100 * np.array(counts) / np.sum(counts, 0).max(), atol=0.06)


def test_the_examples_of_both_sets_are_in_the_order_of_their_difficulty(whole: tuple[Layout, str]) -> None:
    layout, page = whole
    shown = page.partition("Simple and hard</h2>")[2].partition("</section>")[0]
    for name, easiest_first in (("simple", True), ("hard", False)):
        frame = pd.read_parquet(layout.split / f"{name}.parquet").sort_values("difficulty", ascending=easiest_first)
        firsts = frame.drop_duplicates("category")
        pictures = shown.partition(f"<b>{name}</b>")[2]
        titles = zip(firsts["category"].str.replace("_", " "), firsts["difficulty"], strict=True)
        places = [pictures.index(f"{category} {difficulty:.2f}") for category, difficulty in titles]
        assert len(places) == len(ALL_CATEGORIES) and places == sorted(places)


def test_nothing_from_outside(whole: tuple[Layout, str]) -> None:
    """Self-contained: no address, no script; text of producers is only text."""
    page = whole[1]
    assert not re.search(r"https?://|<script|@import|<link", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page


def test_first_model_has_no_champion(tmp_path: Path) -> None:
    page = page_of(cycle(tmp_path, photos=3, champion=False)[0])
    checked(page)
    assert "<strong>INCONCLUSIVE</strong>" in page and "There is no champion yet" in page
    assert "3 eval photos, 8 are needed" in page


def test_bare_workspace(tmp_path: Path) -> None:
    layout = Layout(Settings.from_env(tmp_path / "data"))
    page = page_of(layout)
    checked(page)
    assert "No verdict" in page and "The catalog is empty" in page


def test_verdict_about_another_model_is_said(tmp_path: Path) -> None:
    layout, store, catalog = cycle(tmp_path, photos=2)
    layout.model("multimodal").write_bytes(b"trained again")
    assert "about another model" in page_of(layout)


def test_a_comparison_of_labels_is_shown_only_where_it_is_about_this_snapshot(tmp_path: Path) -> None:
    layout, store, catalog = cycle(tmp_path)
    digest = json.loads((layout.snapshot / "snapshot.json").read_text())["digest"]
    facts = {"snapshot": digest, "base": 41, "photos_per_arm": 7, "steps": 300, "seeds": 3}
    row = {"category": "pets", "routed": 3.0, "random": 2.3, "eval_photos": 9, "mse_routed": 0.15, "mse_random": 0.2}
    report = Report("label-compare", facts=facts)
    report.tables["compare"] = [row | {"gain": 0.05, "spread": 0.01}]
    report.write(layout.stage_report("label-compare"))
    page = page_of(layout)
    shown = page.partition("Routed against random photos")[2].partition("</section>")[0]
    assert "41 photos" in shown and "3 seeds" in shown and "unknown with one" not in shown
    assert all(f"<td>{text}</td>" in shown for text in ("3", "2.3", "0.1500", "0.2000", "+25.0 %", "± 5.0 %"))
    report.facts["snapshot"] = "another"
    report.write(layout.stage_report("label-compare"))
    assert "Routed against random photos" not in page_of(layout)


def test_a_picture_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    """The page left it out, and the command ended well."""
    layout, store, catalog = cycle(tmp_path)
    picture = next((layout.evaluation / "mattes").glob("*.png"))
    content = picture.read_bytes()
    for damage in (picture.unlink, lambda: picture.write_bytes(content[:60]), lambda: picture.write_bytes(b"")):
        damage()
        with pytest.raises(
            InputError, match=f"{re.escape(str(picture))} is (missing|damaged): run `mm evaluate` again"
        ):
            page_of(layout)
    seal_folder(layout.evaluation)
    picture.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(picture))} is damaged, .*: run `mm evaluate` again"):
        page_of(layout)
    seal_folder(layout.evaluation)
    hardest = pd.read_parquet(layout.split / "hard.parquet").sort_values("difficulty")["sample_id"].iloc[-1]
    photo = tmp_path / "data" / "store" / blob_key(hardest)
    photo.write_bytes(b"scribble")
    with pytest.raises(BlobDamaged, match=f"{hardest} is damaged, .*: run `mm check --repair`"):
        page_of(layout)
    photo.unlink()
    with pytest.raises(BlobNotFound, match=f"{hardest}: run `mm check --repair`"):
        page_of(layout)
    catalog.add("forgotten", [{"id": hardest}])
    assert "PROMOTE" in page_of(layout), "of a forgotten photo there is no picture, and no fault"


def test_the_strips_follow_a_workspace_that_moved(tmp_path: Path) -> None:
    """Their recorded paths are absolute: after a move, the page left them out."""
    layout, _, _ = cycle(tmp_path / "before")
    report = Report.read(layout.stage_report("evaluate"))
    strip = layout.evaluation / "shadow" / "0.png"
    strip.parent.mkdir()
    shutil.copy(next((layout.evaluation / "mattes").glob("*.png")), strip)
    report.pictures["shadow 1: champion, candidate, difference 0.1"] = str(strip)
    report.tables["shadow"] = [{"sample_id": "5" * 64, "category": "pets", "difference": 0.1}]
    report.write(layout.stage_report("evaluate"))
    (tmp_path / "before").rename(tmp_path / "after")
    page = page_of(Layout(Settings.from_env(tmp_path / "after" / layout.root.relative_to(tmp_path / "before"))))
    assert page.count('<figure class="across"><img src="data:image/webp') == 1
