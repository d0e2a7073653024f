"""What `mm` prints for a person: counts, reasons and next steps; no digests, nothing cut."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mm_core.cli.app import app
from mm_core.cli.terminal import say, table
from mm_core.cli.words import held_words, ingest_words
from mm_core.core.records import ALL_CATEGORIES, Report
from samplegen import write_drop

LONG = "images/" + "a-long-name-" * 9 + ".jpg"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose inbox holds a drop with a truncated photo, a full matte and a photo listed twice."""
    root = tmp_path_factory.mktemp("words")
    made = write_drop(root / "inbox", "pixel_labeled", "w01", {"portrait": 5, "pets": 2}, seed=1, size=64)
    lines = (made / "manifest.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    image, digest = header.index("image"), header.index("sha256") if "sha256" in header else None
    (made / rows[0][image]).rename(made / LONG)
    rows[0][image] = LONG
    (made / LONG).write_bytes((made / LONG).read_bytes()[:200])
    shutil.copyfile(made / rows[2][image], made / rows[1][image])
    if digest is not None:
        rows[0][digest] = rows[1][digest] = ""
    (made / "manifest.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def told(house: Path) -> str:
    result = mm("ingest", workspace=house)
    assert result.exit_code == 0, result.output
    return result.stdout


def mm(*arguments: str, workspace: Path) -> Result:
    environment = {"MM_WORKSPACE": str(workspace), "MM_INBOX": "", "COLUMNS": "80"}
    return CliRunner().invoke(app, [*arguments], env=environment)


def test_ingest_tells_counts_and_reasons_and_no_digest(told: str) -> None:
    assert not re.search(r"[0-9a-f]{40}", told)
    row = next(line.split() for line in told.splitlines() if line.startswith("pixel_labeled/w01"))
    names = next(line.split() for line in told.splitlines() if line.startswith("batch "))
    counts = dict(zip(names, row, strict=True))
    assert counts["photos"] == "7" and counts["accepted"] == "4" and counts["quarantined"] == "1"
    # One photo under two names, with two mattes: neither row is taken.
    assert counts["conflicts"] == "2" and "rows of one photo disagree" in told
    assert re.search(r"^portrait +2$", told, re.M) and re.search(r"^pets +2$", told, re.M)
    assert "truncated" in told and f"{LONG}:" in told
    assert "mm quarantine list" in told
    # Rules that passed are not listed.
    assert "row_is_whole" not in told and len(told.splitlines()) < 30


def test_nothing_new_is_said_in_a_line(told: str, house: Path) -> None:
    again = mm("ingest", workspace=house).stdout
    assert again.startswith(f"nothing new in the inbox {house}") and again.count("\n") == 1


def test_quarantine_is_readable_and_names_the_next_step(told: str, house: Path) -> None:
    listed = mm("quarantine", "list", workspace=house).stdout
    line = next(line for line in listed.splitlines() if LONG in line)
    key = line.split()[0]
    assert re.fullmatch(r"[0-9a-f]{12}", key)
    shown = mm("quarantine", "show", key, workspace=house).stdout
    assert not shown.startswith("{") and f"photo     {LONG}" in shown
    assert "mm quarantine retry w01" in shown and "row 0" in shown
    as_json = json.loads(mm("quarantine", "show", key, "--json", workspace=house).stdout)
    assert as_json["key"].startswith(key) and len(as_json["key"]) == 64


def test_ingest_tells_what_changed_was_removed_vanished_or_is_not_used() -> None:
    report = Report("ingest", facts={"data_docs": "docs"})
    change = {"kind": "pixel_labeled", "batch": "a", "image": "x\x1b[2J\n.jpg", "column": "category", "old": "pets"}
    report.tables = {
        "batches": [], "rejects": [], "expectations": [],
        "vanished": [{"kind": "unlabeled", "batch": "b", "reason": "left the inbox"}],
        "unread": [{"kind": "", "batch": "", "reason": "move it"}],
    }  # fmt: skip
    lines = ingest_words(report, [], "inbox").splitlines()
    assert lines[1:] == ["not used: the inbox: move it", "vanished: unlabeled/b: left the inbox"]
    counts = dict.fromkeys(("rows", "accepted", "updated", "quarantined", "duplicates", "conflicts"), 1)
    report.tables["batches"] = [{"kind": "pixel_labeled", "batch": "a", "state": "ingested", **counts}]
    report.tables["updates"] = [change | {"new": "c" * 500}]
    report.tables["removed"] = [change | {"image": "gone.jpg", "column": "alpha", "old": "a" * 64, "new": ""}]
    told = ingest_words(report, [], "inbox")
    assert "vanished: unlabeled/b" in told and f"pets  {'c' * 60}…" in told
    assert re.search(r"^pixel_labeled/a +gone\.jpg +alpha +a{12} +\(none\)$", told, re.M)
    assert "x\\x1b[2J\\n.jpg" in told, "a producer's text controls no terminal"


def photos(house: Path) -> list[Path]:
    return sorted((house / "inbox" / "pixel_labeled" / "w01" / "images").glob("*"))


def test_drop_counts_per_category_and_names_what_it_left_out(house: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for place, source in zip(("portrait/a", "portrait/b", "people/c", "d"), photos(house)[1:], strict=False):
        target = folder / f"{place}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / "alphas").mkdir()
    (folder / "alphas" / "old.png").write_bytes(b"x")
    (folder / "notes.docx").write_bytes(b"x")
    workspace = tmp_path / "house"
    result = mm("drop", str(folder), "--kind", "unlabeled", "--batch", "b", workspace=workspace)
    assert result.exit_code == 0, result.output
    words = result.stdout
    assert re.search(r"^portrait +2 +0$", words, re.M) and re.search(r"^\(none\) +2 +0$", words, re.M)
    assert "left out: 2 files" in words and "not a photo (.docx): notes.docx" in words
    assert "alphas/old.png" in words and "matte" in words
    assert "2 photos have no category" in words and "Sub-folders that are no category: people." in words
    assert all(name in words for name in ALL_CATEGORIES) and "mm ingest" in words
    summary = json.loads(
        mm("drop", str(folder), "--kind", "unlabeled", "--batch", "c", "--json", workspace=workspace).stdout
    )
    assert summary["photos"] == 4 and summary["other_folders"] == ["people"]
    assert [entry["file"] for entry in summary["left_out"]] == ["alphas/old.png", "notes.docx"]


def test_a_drop_with_mattes_counts_them_and_names_a_matte_without_a_photo(house: Path, tmp_path: Path) -> None:
    source = house / "inbox" / "pixel_labeled" / "w01"
    matte = sorted((source / "alphas").rglob("*.png"))[0]
    folder = tmp_path / "photos"
    (folder / "alphas" / "pets").mkdir(parents=True)
    (folder / "pets").mkdir()
    shutil.copyfile(photos(house)[2], folder / "pets" / "a.jpg")
    shutil.copyfile(matte, folder / "alphas" / "pets" / "a.png")
    shutil.copyfile(matte, folder / "alphas" / "pets" / "gone.png")
    shutil.copyfile(photos(house)[3], folder / "flat.jpg")
    shutil.copyfile(matte, folder / "alphas" / "flat.png")
    words = mm("drop", str(folder), "--kind", "pixel_labeled", "--batch", "b", workspace=tmp_path / "house").stdout
    assert re.search(r"^pets +1 +1$", words, re.M)
    assert "left out: 1 file\n" in words and "1 matte without a photo: alphas/pets/gone.png" in words
    assert "\n1 photo has no category." in words


def test_tables_are_not_cut_and_shorten_digests() -> None:
    digest = "ab" * 32
    shown = table([{"name": "x" * 300, "key": digest, "share": 0.123456}])
    assert "x" * 300 in shown and digest not in shown and digest[:12] in shown and "0.1235" in shown


def test_a_list_of_texts_has_a_line_for_each_in_the_last_column() -> None:
    rows = [
        {"cycle": 1, "reasons": ["first model"], "seconds": 414.4},
        {"cycle": 2, "reasons": ["a", "b"], "seconds": 3.0},
    ]
    assert table(rows).splitlines() == [
        "cycle  seconds  reasons",
        "1      414.4    first model",
        "2      3        a",
        "                b",
    ]


def test_a_sentence_stands_in_the_last_column_or_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    why = "Chosen because pets needs labels (error 1.2 times the mean); it looks harder than 91 % of pets."
    shown = table([{"sample": "a", "why": why, "score": 1}]).splitlines()
    assert shown[0].split() == ["sample", "score", "why"] and shown[1].endswith(why)
    say(Report("gate", facts={"reasons": [why, "b"], "names": ["x", "y"]}), False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == ["  reasons:", f"    {why}", "    b", "  names: x, y"]


def test_a_held_batch_is_told_with_its_reason_and_the_next_step() -> None:
    held = {"kind": "unlabeled", "batch": "w48", "state": "held", "reason": "too many bad rows: 3 of 3"}
    assert "unlabeled/w48: too many bad rows: 3 of 3" in held_words([held])
    assert "mm quarantine retry w48" in held_words([held])
    assert held_words([]) == ""
