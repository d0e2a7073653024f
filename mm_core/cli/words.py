"""Text output of `mm`: short tables with counts, reasons and the next step.

`--json` prints the whole result. The text output has only actionable facts, such as refused rows and their reasons. It
omits passed rules and digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_core.cli.terminal import LONG_TEXT, MOST_ROWS, count_of, printable, table
from mm_core.core.categories import ALL_CATEGORIES
from mm_core.core.deferred import Deferred
from mm_core.core.layout import TRAIN_STAGES

if TYPE_CHECKING:
    from mm_core.core import records
    from mm_core.core.records import Report
    from mm_core.export.lineage import Lineage
    from mm_core.ingest.drop import DropSummary
    from mm_core.ingest.expectations import ExpectationResult
    from mm_core.ingest.quarantine import RejectView
    from mm_core.storage.rows import BatchRow, CorrectionRow, RejectRow
else:
    records = Deferred("mm_core.core.records")

COUNTS = ("accepted", "updated", "quarantined", "duplicates", "conflicts")
"""Columns of the batch ledger in the text output; columns that this catalog lacks are skipped."""
NO_CATEGORY = "(none)"


def drop_words(summary: DropSummary) -> str:
    """Return the text output of `mm drop`.

    Args:
        summary: Result of `mm_core.ingest.drop.summarize_drop`.

    Returns:
        Counts per category, skipped files with reasons, and a remedy if photos have no category.
    """
    rows = [{"category": name, **counts} for name, counts in summary["categories"].items()]
    lines = [f"drop    {summary['drop']}", f"photos  {summary['photos']}", "", table(rows)]
    if left_out := summary["left_out"]:
        lines += ["", f"left out: {count_of(len(left_out), 'file')}"]
        # One line per reason, with three examples.
        for reason in dict.fromkeys(entry["reason"] for entry in left_out):
            # Photos of one reason are listed together; three names are enough to find them.
            names = [entry["file"] for entry in left_out if entry["reason"] == reason]
            lines.append(f"  {len(names)} {reason}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}")
    if bare := summary["categories"].get(NO_CATEGORY):
        folders = ", ".join(summary["other_folders"])
        photos = f"{count_of(bare['photos'], 'photo')} {'has' if bare['photos'] == 1 else 'have'}"
        lines += [
            "",
            f"{photos} no category. The sub-folder names it: {', '.join(ALL_CATEGORIES)}."
            + (f" Sub-folders that are no category: {folders}." if folders else ""),
        ]
    return "\n".join([*lines, "", "next: `mm ingest` takes the drop into the catalog, or `mm run` runs a whole cycle"])


def held_words(held: Sequence[Mapping[str, object]]) -> str:
    """Return the reason and the remedy of each held batch; empty without one.

    Args:
        held: Ledger rows with the state `held`.
    """
    lines = []
    for row in held:
        lines.append(printable(f"  {row['kind']}/{row['batch']}: {row['reason']}"))
        lines.append(f"    next: `mm quarantine list`, repair the drop, then `mm quarantine retry {row['batch']}`")
    return "\n".join(["held batches", *lines]) if held else ""


def ingest_words(report: Report, categories: Sequence[Mapping[str, object]], inbox: str) -> str:
    """Return the text output of `mm ingest`: counts per batch, accepted photos per category, refusals by reason.

    Args:
        report: The report of ingest, or of a quarantine verb that ingests rows again.
        categories: Rows with `category` and `photos`, the accepted photos of the batches.
        inbox: Folder or URL that was searched.

    Returns:
        Several lines of text without digests.
    """
    batches: list[BatchRow] = report.rows("batches")
    unused = [reason_line("not used", row) for row in report.rows("unread")]
    unused += [reason_line("vanished", row) for row in report.rows("vanished")]
    if not batches:
        return "\n".join([f"nothing new in the inbox {inbox} ({report.seconds:.1f} s)", *unused])
    lines = [f"{len(batches)} {'batch' if len(batches) == 1 else 'batches'} in {report.seconds:.1f} s", ""]
    # Older catalogs lack some of the columns.
    counts = [name for name in COUNTS if name in batches[0]]
    rows = [
        {"batch": f"{row['kind']}/{row['batch']}", "photos": row["rows"], **{name: row[name] for name in counts}}
        | {"state": row["state"]}
        for row in batches
    ]
    lines.append(table(rows))
    lines += [reason_line("held", row) for row in batches if row["state"] == "held"]
    lines += unused
    lines += _corrections(report.rows("updates"), report.rows("removed"))
    if categories:
        lines += ["", "accepted by category", table(categories)]
    # Drops without labelled photos do not change the evaluation photos, so their report lacks this fact.
    lines += eval_words(report.fact("eval", list) if report.facts.get("eval") else [])
    lines += _refusals(report.rows("rejects"))
    # Expectations of single rows are in the table of refusals.
    results: list[ExpectationResult] = report.rows("expectations")
    broken = [line for line in results if line["scope"] == "batch" and not line["success"]]
    lines += [f"check failed: {line['batch']}: {line['reason']}" for line in broken]
    if drifted := report.tables.get("drift"):
        lines += ["", "differs from what came before", table(drifted)]
    if report.facts.get("waiting"):
        waiting = report.fact("waiting", list)
        lines.append(f"waiting until their drop comes again: {', '.join(waiting)}")
    left_out = report.fact("left_out", dict) if report.facts.get("left_out") else {}
    lines += [f"not computed: {name}: {why}" for name, why in left_out.items()]
    return "\n".join([*lines, "", f"details: {report.facts['data_docs']}"])


def eval_words(words: Sequence[str]) -> list[str]:
    """Return the lines about the evaluation photos that are missing or cannot judge; empty if nothing is to be said.

    Args:
        words: The sentences of `mm_core.ingest.snapshot.eval_state`.
    """
    return ["", "evaluation photos", *(f"  {line}" for line in words)] if words else []


def reason_line(state: str, row: Mapping[str, object]) -> str:
    """Return the line of a drop, or of a folder of the inbox, with the reason for its state."""
    place = "/".join(str(row[name]) for name in ("kind", "batch") if row[name]) or "the inbox"
    return printable(f"{state}: {place}: {row['reason']}")


def _corrections(updates: Sequence[CorrectionRow], removed: Sequence[CorrectionRow]) -> list[str]:
    """Return the lines of a table of changed values and removed rows; empty if nothing known has changed."""
    lines = []
    gone = "no longer in the manifest; a matte that it brought is withdrawn"
    for title, changes in (("changed", updates), (gone, removed)):
        rows = [
            {"batch": f"{row['kind']}/{row['batch']}", "image": row.get("image")}
            | {"column": row["column"], "old": _short(row["old"]), "new": _short(row["new"])}
            for row in changes[:MOST_ROWS]
        ]
        more = [f"… and {len(changes) - MOST_ROWS} more: `--json` prints all"] if len(changes) > MOST_ROWS else []
        lines += ["", title, table(rows), *more] if rows else []
    return lines


def _short(value: str | None) -> str:
    text = value or "(none)"
    # A digest is shortened by the table.
    return text if len(text) <= 64 else f"{text[:LONG_TEXT]}…"


@dataclass
class _Reason:
    photos: int
    verdict: str
    example: str


def _refusals(rejects: Sequence[RejectRow]) -> list[str]:
    """Return the lines of a table with a row per reason; empty if every row was accepted."""
    reasons: dict[str, _Reason] = {}
    for row in rejects:
        detail = f": {row['detail']}" if row["detail"] else ""
        entry = reasons.setdefault(row["reason"], _Reason(0, row["verdict"], f"{row['image']}{detail}"))
        entry.photos += 1
    if not reasons:
        return []
    rows = [
        {"photos": e.photos, "verdict": e.verdict, "reason": reason, "for example": e.example}
        for reason, e in sorted(reasons.items(), key=lambda item: -item[1].photos)
    ]
    # Duplicates are not in quarantine, so the hint is only for refused rows.
    refused = any(entry.verdict == "quarantine" for entry in reasons.values())
    return ["", "not accepted", table(rows), *(["`mm quarantine list` names each row"] if refused else [])]


def reject_words(row: RejectView) -> str:
    """Return the text output of `mm quarantine show` for one refused row.

    Args:
        row: Result of `mm_core.ingest.quarantine.show`.

    Returns:
        Lines with names and values, and the remedy for the verdict.
    """
    named = {
        "photo": row["image"],
        "batch": f"{row['kind']}/{row['batch']}, row {row['row']} of the manifest",
        "verdict": row["verdict"],
        "reason": row["reason"],
        "detail": row["detail"],
        "kept copy": row["file"],
        "its matte": row["matte"],
        "look at": row["view"],
        "key": row["key"][:12],
    }
    lines = [f"{name:10}{value}" for name, value in named.items() if value]
    if row["view"]:
        lines.append("          (photo, matte, and the matte's edge on the photo in red; the fault's place in magenta)")
    key = row["key"][:12]
    # The remedy depends on the verdict: nothing, a review of the matte, or a repair.
    if row["verdict"] == "duplicate":
        remedy = "nothing is to be done: the photo is in the catalog already"
    elif row["view"]:
        remedy = f"if the matte is right: mm quarantine accept {key} --why TEXT; else repair it, then as below"
        remedy += f"\n          mm quarantine retry {row['batch']}"
    else:
        remedy = f"repair the file in the inbox, then: mm quarantine retry {row['batch']}"
    return "\n".join([*lines, f"{'next':10}{remedy}"])


def lineage_report(record: Lineage) -> Report:
    """Return the lineage of a version for people; `mm lineage --json` prints all of it, params and files included."""
    report = records.Report("lineage")
    report.facts |= {name: record[name] for name in ("version", "aliases", "model", "bundle", "start", "seed")}
    report.facts |= {"code": record["code_revision"], "snapshot": record["snapshot"]["digest"]}
    report.facts |= {"decision": record["verdict"].get("decision"), "reasons": record["verdict"].get("reasons")}
    report.metrics |= {f"photos/{pool}": count for pool, count in record["counts"].items()}
    stages = record["stages"]
    report.tables["stages"] = [{"stage": name, "model": stages[name]["digest"]} for name in TRAIN_STAGES]
    report.tables["moves"] = [dict(move) for move in record["moves"]]
    report.tables["samples"] = [dict(sample) for sample in record["samples"]]
    return report
