"""Names of drops: what is safe passes, everything else is held with its reason and blocks nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mm_core.core.errors import InputError
from mm_core.core.params import IngestParams
from mm_core.ingest.batch_names import name_fault, shown
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.drop import package_folder
from mm_core.ingest.expectations import Judge
from mm_core.ingest.ingest import ready_batches
from mm_core.ingest.probe import Probe

SAFE = (
    "a",
    "2026-11-28",
    "w01.v2",
    "day 1, take (2)",
    "date=2026+1",
    "été_東京",
    "feedback-0123456789abcdef",
    "9" * 120,
)
UNSAFE = (
    r"a\b", "<img src=x onerror=alert(1)>", 'a"b', "a'b", "a&b", "a\nb", "a\tb", "a\x1b[31mb", "a\x7f", "a...b", "..",
    ".", "-rf", " a", "a ", "a.", "a;b", "$(id)", "`id`", "a%2e%2e", "a\u202eb", "a\u200bb", "*", "a?b", "a#b", "a:b",
    "a|b", "é" * 61, "a  b", "\udce9", "{{7*7}}", "=1+1", "@a",
)  # fmt: skip


@pytest.mark.parametrize("name", SAFE)
def test_a_safe_name_passes(name: str) -> None:
    assert name_fault(name) == ""


@pytest.mark.parametrize("name", UNSAFE)
def test_any_other_is_refused_in_words_that_can_be_shown(name: str, tmp_path: Path) -> None:
    fault = name_fault(name)
    assert "rename it" in fault and fault.isascii() and fault.isprintable() and not re.search(r"[<>&`]", fault)
    with pytest.raises(InputError, match="rename it"):
        package_folder(tmp_path, tmp_path, "unlabeled", name)


def test_a_name_is_spelled_out_where_it_is_shown() -> None:
    assert shown("<b>\n") == r"'\x3cb\x3e\n'"
    assert len(shown("a" * 500)) < 80


def test_drops_of_unsafe_names_are_held_and_the_others_are_taken(any_workshop: Any, make: Any) -> None:
    shop = any_workshop
    names = [r"a\b", "<img src=x onerror=alert(1)>", "a...b"]
    for name in names:
        shop.drop("unlabeled", name, [{"image": "1.jpg", "image_bytes": make.encoded(make.photo(1))}])
    shop.drop("unlabeled", "good", [{"image": "1.jpg", "image_bytes": make.encoded(make.photo(2))}])
    report = shop.ingest()
    lines = {row["batch"]: row for row in report.tables["batches"]}
    assert lines.pop("good")["state"] == "ingested"
    assert len(lines) == 3 and all(name.startswith("unsafe-name-") for name in lines)
    for row in lines.values():
        assert row["state"] == "held" and row["rows"] == 0 and "rename it" in row["reason"]
        assert not re.search(r"[<>]|a\\b|\.\.\.", row["batch"] + row["uri"])
    assert len(shop.catalog.read("samples")) == 1
    assert ready_batches(shop.run) == [], "held is decided; it does not come up again"


def test_an_unsafe_folder_without_a_manifest_is_no_drop(workshop: Any, make: Any) -> None:
    (Path(workshop.inbox.url) / "unlabeled" / "@eaDir").mkdir(parents=True)
    assert ready_batches(workshop.run) == []


def test_what_a_producer_writes_reaches_no_page_as_markup(tmp_path: Path) -> None:
    """Data Docs put names and unexpected values into their pages."""
    attack = '<img src=x onerror="fetch(`//evil`)"><script>alert(1)</script>'
    docs = DataDocs(tmp_path / "docs")
    judge = Judge(IngestParams(), "unlabeled", "b", docs)
    probe = Probe(row=0, image=attack, category=attack.lower(), role=attack, extra_fields=0, caption_length=0)
    faults = judge.rows([replace(probe, row=n) for n in range(3)])
    assert len(faults) == 3
    docs.build()
    pages = [path.read_text() for path in (tmp_path / "docs").rglob("*.html")]
    assert len(pages) >= 3 and any("&lt;img src=x" in page for page in pages), "the value is shown, as text"
    for page in pages:
        tags = Tags()
        tags.feed(page)
        assert not tags.names & {"script", "img", "iframe", "object", "embed", "form", "base"}
        assert not any(name.startswith("on") or "javascript:" in (value or "") for name, value in tags.attributes)
        assert "content-security-policy" in page.lower()


class Tags(HTMLParser):
    """Which elements and attributes a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs
