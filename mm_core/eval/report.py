"""One self-contained HTML page about a cycle: verdict, numbers, mattes, quarantine, costs.

Each section is made from the output files of the stages. A section without its files shows a note instead.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from mm_core.core.categories import GUARDED
from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import ROLES, has_snapshot, read_snapshot
from mm_core.core.records import (
    ALL_CATEGORIES,
    KINDS,
    Report,
    Verdict,
    parse_record,
    read_verdict,
    sha256_file,
    write_bytes,
)
from mm_core.eval.blind import NAME as BLIND_NAME
from mm_core.eval.examples import small
from mm_core.eval.heat_table import COLUMNS, TITLES, heat_rows, number, other_cells, share
from mm_core.eval.rows import (
    CategoryScore,
    ComparedRow,
    ExampleRow,
    PartialSnapshot,
    Scores,
    ShadowRow,
    SplitRow,
    ValueRow,
)
from mm_core.imaging.images import UnreadableImage, load_rgb, read_header
from mm_core.storage.catalog import Catalog
from mm_core.storage.rows import RejectRow, records
from mm_core.storage.run import StorageRun
from mm_core.storage.seals import read_sealed_table, require_unbroken
from mm_core.storage.store import Store, fetch_blob

STAGES = (
    "snapshot",
    "split",
    *(f"train-{stage}" for stage in TRAIN_STAGES),
    "evaluate",
    "gate",
    "export",
    "promote",
    "label-value",
)
ORDER = ("photo", "truth", *TRAIN_STAGES, "champion", "difference")
"""Order of the pictures of one example."""
EVALUATE = "run `mm evaluate` again"
"""Remedy for what the evaluation wrote."""
QUARANTINE_SHOWN, THUMB = 24, 160
COLUMNS_SHOWN = 24
"""Number of columns in a histogram of difficulties."""
SAFE_PIXELS = 40_000_000
"""Largest number of pixels, by its header, of a quarantined file that gets a thumbnail."""


def write_html(run: StorageRun, report: Report) -> Report:
    """Write `layout.html_report` and a copy in `layout.reports`, named by snapshot and candidate; return `report`."""
    layout = run.layout
    stages = _stage_reports(layout)
    verdict = read_verdict(layout.verdict) if has_file(layout.verdict) else None
    evaluation = stages.get("evaluate", Report("evaluate"))
    if "evaluate" in stages:
        require_unbroken(layout.evaluation, EVALUATE)
    rows: list[CategoryScore] = evaluation.rows("per_category")
    scores = {(r["model"], r["precision"], r["category"]): r for r in rows}
    model = layout.model(TRAIN_STAGES[-1])
    candidate = sha256_file(model) if has_file(model) else ""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        verdict=verdict,
        headline=headline(verdict) if verdict else "",
        about=_about(layout, run.catalog, verdict),
        stale=bool(verdict and candidate and verdict.candidate != candidate),
        titles=TITLES,
        heat=heat_rows(verdict, scores),
        others=other_cells(verdict),
        bars=_bars(scores),
        fidelity=_fidelity(scores),
        shipped=_shipped(stages),
        mattes=_mattes(layout, evaluation),
        flips=evaluation.tables.get("flips", []),
        labels=_labels(stages.get("label-value")),
        compared=_compared(layout),
        shadow=_shadow(layout, evaluation),
        split=_split(run),
        difficulties=_difficulties(layout),
        quarantine=_quarantine(run.catalog, run.store),
        counts=_counts(run.catalog),
        costs=_costs(stages),
        identifiers=_identifiers(layout, verdict, candidate),
        params=run.params.gate,
    )
    data = page.encode()
    write_bytes(layout.html_report, data)
    about = _snapshot(layout)
    # The copy keeps the pages of earlier cycles; the main page is overwritten.
    name = "-".join(part[:12] for part in (about.get("digest", ""), candidate) if part) or "empty"
    write_bytes(layout.reports / f"{name}.html", data)
    report.facts |= {"html": str(layout.html_report), "copy": str(layout.reports / f"{name}.html")}
    report.facts["decision"] = verdict.decision if verdict else None
    report.metrics["report/bytes"] = float(len(data))
    return report


def headline(verdict: Verdict) -> str:
    """Return the decision in one sentence."""
    if verdict.decision == "PROMOTE":
        return "The candidate may ship."
    first = verdict.basis == "bootstrap"
    failed = {cell.against for cell in verdict.cells if cell.result == "fail"}
    if verdict.decision == "REJECT" and first and "floor" in failed:
        return "The first model is below the floor: nothing is released."
    if verdict.decision == "REJECT" and first and "blind" in failed:
        return "The first model is worse than the blind matte: nothing is released."
    if verdict.decision == "REJECT":
        return "A loss is shown: nothing is released."
    if not verdict.cells:
        return "There are no scores that can be compared: nothing is released."
    if first:
        return "It is not settled whether the first model is good enough: nothing is released."
    # The shadow photos can hold a candidate that passed every comparison.
    if all(cell.result == "pass" for cell in verdict.cells if cell.category not in GUARDED):
        return "A gain is shown, but people must look at it first: nothing is released."
    return "Neither a sufficient gain nor a loss is shown: nothing is released."


def _about(layout: Layout, catalog: Catalog, verdict: Verdict | None) -> list[tuple[str, str]]:
    """Return the workspace, the newest batch of the snapshot and the date, which identify the page."""
    # If several batches arrived at the same time, the last one by name is shown.
    order = "ORDER BY accepted_at DESC NULLS LAST, batch DESC LIMIT 1"
    newest = catalog.query(f"SELECT batch FROM samples {order}", _snapshot(layout).get("catalog"))
    return [
        ("workspace", str(layout.root)),
        ("newest batch", str(newest["batch"].iloc[0]) if len(newest) else "none"),
        ("date", verdict.created_at if verdict else datetime.now(UTC).isoformat(timespec="seconds")),
    ]


def _bars(scores: Scores) -> list[dict[str, object]]:
    """Return the MSE of each model per category, with bar widths in percent of the category's largest MSE."""
    models = [m for m in (*TRAIN_STAGES, "champion", BLIND_NAME) if any(k[:2] == (m, "float") for k in scores)]
    groups = []
    for category in (*ALL_CATEGORIES, "macro"):
        found = [(model, scores.get((model, "float", category), {}).get("mse")) for model in models]
        known = [(model, float(value)) for model, value in found if value is not None]
        # An MSE of 0 everywhere must not divide by 0.
        top = max((value for _, value in known), default=0.0) or 1.0
        bars = [{"model": m, "value": number(v), "width": round(100 * v / top, 1)} for m, v in known]
        if bars:
            groups.append({"category": "mean of the six" if category == "macro" else category, "bars": bars})
    return groups


def _fidelity(scores: Scores) -> list[dict[str, object]]:
    """Return the metrics of the candidate as float and as int8, and of the blind matte."""
    rows = []
    for category in (*ALL_CATEGORIES, "macro", "weighted"):
        one, other = (scores.get((TRAIN_STAGES[-1], precision, category)) for precision in ("float", "int8"))
        if one and other:
            # Relative cost of the quantisation.
            before, after = one.get("mse"), other.get("mse")
            cost = (after / before - 1) * 100 if before and after is not None else None
            blind = scores.get((BLIND_NAME, "float", category), {})
            values = [[number(row.get(metric)) for row in (one, other, blind)] for metric in COLUMNS]
            rows.append({"category": category, "values": values, "cost": f"{cost:+.1f} %" if cost is not None else "–"})
    return rows


def _shipped(stages: Mapping[str, Report]) -> list[dict[str, str]]:
    """Return size, speed, memory and error of each file of the bundle, as measured by the export."""
    rows = stages["export"].rows("bundle") if "export" in stages else []
    return [
        {"file": row["file"], "in_float": row.get("in_float", ""), "megabytes": f"{row['bytes'] / 1e6:.2f}"}
        | {t: f"{row[f'ms_{t}_threads']:.1f} ms ({row[f'speedup_{t}_threads']:.1f} ×)" for t in ("1", "2")}
        | {"peak": f"{row['peak_mb']:.0f}", "diff": f"{row['diff_mse']:.1e}"}
        for row in rows
    ]


def _mattes(layout: Layout, evaluation: Report) -> list[dict[str, object]]:
    folder, examples = layout.evaluation / "mattes", []
    rows: list[ExampleRow] = evaluation.rows("mattes")
    for row in rows:
        paths = {title: folder / row["files"][title] for title in ORDER if title in row["files"]}
        # Beside the champion, the last stage is called what it is in the release.
        names = {TRAIN_STAGES[-1]: "candidate"} if row["rank"] == "regression" else {}
        pictures = [{"title": names.get(title, title), "src": _evaluated(path)} for title, path in paths.items()]
        examples.append({**row, "value": number(row["mse"]), "pictures": pictures})
    return examples


def _shadow(layout: Layout, evaluation: Report) -> dict[str, object] | None:
    """Return the strips of the shadow run, sorted by decreasing difference; None without a shadow run."""
    rows: list[ShadowRow] = evaluation.rows("shadow")
    if not rows:
        return None
    # The workspace may have moved since, so only the names of the recorded paths count.
    names = [Path(path).name for title, path in evaluation.pictures.items() if title.startswith("shadow ")]
    strips = [
        {
            "difference": number(row["difference"], 3),
            "sample_id": row["sample_id"],
            "src": _evaluated(layout.evaluation / "shadow" / name, 1024),
        }
        for row, name in zip(rows, names, strict=False)
    ]
    mean = evaluation.metrics.get("shadow/mean_difference")
    return {"photos": int(evaluation.metrics.get("shadow/photos", 0)), "mean": number(mean, 3), "strips": strips}


def _labels(value: Report | None) -> list[dict[str, object]]:
    """Return the new labels by source, with the error of their category before and after."""
    rows: list[ValueRow] = value.rows("value_of_labels") if value else []
    shown = []
    for row in rows:
        errors = {"mse_before": number(row["mse_before"]), "mse_after": number(row["mse_after"])}
        gains = {"gain": row["gain"], "bound": row["bound"]}
        said = {n: "–" if v is None else share(v, row["mse_before"], "mse") for n, v in gains.items()}
        shown.append({**row, **errors, **said})
    return shown


def _compared(layout: Layout) -> dict[str, object] | None:
    """Return the comparison of routed and random photos for this snapshot, or the reason without one; else None."""
    path = layout.stage_report("label-compare")
    report = Report.read(path) if has_file(path) else None
    # A comparison of another snapshot says nothing about this cycle.
    if report is None or report.facts["snapshot"] != _snapshot(layout).get("digest"):
        return None
    shown = []
    rows: list[ComparedRow] = report.rows("compare")
    for row in rows:
        errors = {"mse_routed": number(row["mse_routed"]), "mse_random": number(row["mse_random"])}
        differences = {"gain": row["gain"], "spread": row["spread"]}
        gains = {n: "–" if v is None else share(v, row["mse_random"], "mse") for n, v in differences.items()}
        shown.append({**row, **errors, **gains})
    return {"rows": shown, **report.facts}


def _split(run: StorageRun) -> list[dict[str, object]]:
    """Return the simplest photo per category of the simple set and the hardest of the hard set."""
    shown = []
    gone = set(run.catalog.read("forgotten", columns=["id"])["id"])
    for name, hardest in (("simple", False), ("hard", True)):
        path = run.layout.split / f"{name}.parquet"
        if not has_file(path):
            continue
        frame = read_sealed_table(path, "run `mm split` again").to_pandas()
        # The first row of each category is then its simplest photo, or its hardest one.
        ranked = frame.sort_values("difficulty", ascending=not hardest, kind="stable").dropna(subset="category")
        pictures = [
            {"src": src, "title": f"{str(row['category']).replace('_', ' ')} {number(row['difficulty'], 2)}"}
            for row in records(ranked.drop_duplicates("category"), SplitRow)
            if row["sample_id"] not in gone and (src := _thumbnail(fetch_blob(run.store, row["sample_id"])))
        ]
        shown.append({"name": name, "count": len(frame), "pictures": pictures})
    return shown


def _difficulties(layout: Layout) -> list[dict[str, object]]:
    """Return per category the number of photos of each set, the smallest hard difficulty, and a histogram of both sets.

    The heights of the columns are in percent of the category's tallest column.
    """
    paths = {name: layout.split / f"{name}.parquet" for name in ("simple", "hard")}
    if not all(has_file(path) for path in paths.values()):
        return []
    # Both sets share the same bin edges, so that the columns can be stacked.
    frames = {name: read_sealed_table(path, "run `mm split` again").to_pandas() for name, path in paths.items()}
    both = pd.concat([frame.assign(part=name) for name, frame in frames.items()], ignore_index=True)
    if both.empty:
        return []
    difficulties = both["difficulty"].to_numpy(float)
    low, high = float(np.nanmin(difficulties)), float(np.nanmax(difficulties))
    # Equal difficulties must not make bins of width 0.
    edges = np.linspace(low, max(high, low + 1e-6), COLUMNS_SHOWN + 1)
    rows = []
    for category, photos in both.groupby(both["category"].astype(object).fillna("unknown")):
        values = {name: photos.loc[photos["part"] == name, "difficulty"] for name in paths}
        heights = {name: np.histogram(part, edges)[0] for name, part in values.items()}
        top = max(1, int((heights["simple"] + heights["hard"]).max()))
        rows.append(
            {name: len(part) for name, part in values.items()}
            | {"category": category, "threshold": number(values["hard"].min() if len(values["hard"]) else None, 2)}
            | {"columns": [(100 * s / top, 100 * h / top) for s, h in zip(*heights.values(), strict=True)]}
        )
    rows.sort(key=lambda row: [*ALL_CATEGORIES, "unknown"].index(row["category"]))
    return rows


def _quarantine(catalog: Catalog, store: Store) -> dict[str, object]:
    """Return the counts per reason and the newest refused photos, with thumbnails of readable copies."""
    # `rejects` also contains duplicates, which were not refused.
    rejects = records(catalog.read("rejects"), RejectRow)
    refused = [row for row in rejects if row["verdict"] == "quarantine"]
    refused.sort(key=lambda row: (row["rejected_at"], row["key"]), reverse=True)
    rows = [
        {name: row[name] for name in ("image", "reason", "detail", "kind", "batch", "row")}
        | {"src": _kept_copy(store, row["where"])}
        for row in refused[:QUARANTINE_SHOWN]
    ]
    reasons = Counter(str(row["reason"]) for row in refused).most_common()
    return {"rows": rows, "reasons": reasons, "total": len(refused), "duplicates": len(rejects) - len(refused)}


def _counts(catalog: Catalog) -> dict[str, object]:
    category = "coalesce(nullif(category, ''), 'unknown')"
    groups = catalog.query(
        f"SELECT {category} AS name, kind, count(*) AS photos FROM samples GROUP BY {category}, kind"
    )
    photos = Counter({(row["name"], row["kind"]): int(row["photos"]) for row in groups.to_dict("records")})
    labelled = catalog.query("SELECT count(DISTINCT sample_id) AS photos FROM labels WHERE withdrawn_at IS NULL")
    counted = {c: [photos[c, kind] for kind in KINDS] for c in (*ALL_CATEGORIES, "unknown")}
    rows = [{"category": c, "counts": counts, "total": sum(counts)} for c, counts in counted.items() if any(counts)]
    return {"kinds": KINDS, "rows": rows, "samples": photos.total(), "labelled": int(labelled["photos"].iloc[0])}


def _costs(stages: Mapping[str, Report]) -> list[dict[str, object]]:
    longest = max((report.seconds for report in stages.values()), default=0) or 1
    rows = []
    for stage, report in stages.items():
        speed = next((v for name, v in report.metrics.items() if name.endswith("images_per_s")), None)
        width = round(100 * report.seconds / longest, 1)
        rows.append(
            {"stage": stage, "seconds": report.seconds, "width": width, "speed": f"{speed:.1f}" if speed else ""}
        )
    return rows


def _identifiers(layout: Layout, verdict: Verdict | None, candidate: str) -> list[tuple[str, str]]:
    snapshot = _snapshot(layout)
    pins = [(role, snapshot.get(role) or {}) for role in ROLES]
    rows = [
        ("candidate", candidate),
        # Versions and digests identify a model beyond the life of its alias.
        *((role, f"version {pin['version']} · {pin['digest']}" if pin else "none") for role, pin in pins),
        ("snapshot", snapshot.get("digest", "")),
        ("eval set", snapshot.get("eval_digest", "")),
        ("catalog", ", ".join(f"{table} {version}" for table, version in (snapshot.get("catalog") or {}).items())),
        ("bundle", _bundle_name(layout)),
        ("judged at", verdict.created_at if verdict else ""),
    ]
    return [(name, text) for name, text in rows if text]


def _bundle_name(layout: Layout) -> str:
    """Return the name of the cycle's bundle; empty without one."""
    path = layout.cycle_bundle / "export.json"
    if not has_file(path):
        return ""
    return str(parse_record(path.read_bytes(), dict[str, object], path, "run `mm export` again").get("bundle", ""))


def _snapshot(layout: Layout) -> PartialSnapshot:
    return cast(PartialSnapshot, read_snapshot(layout)) if has_snapshot(layout) else {}


def _stage_reports(layout: Layout) -> dict[str, Report]:
    """Read the existing reports of the stages, in the order of the flow, ingest first."""
    paths = {"ingest": layout.root / "reports" / "ingest.json"} | {s: layout.stage_report(s) for s in STAGES}
    return {stage: Report.read(path) for stage, path in paths.items() if has_file(path)}


def _kept_copy(store: Store, key: str | None) -> str:
    """Return a data URL of the small picture of a refused file; empty if no copy of it was kept, or is left."""
    try:
        return _thumbnail(store.fetch(key)) if key else ""
    except BlobNotFound:
        return ""


def _evaluated(path: Path, side: int = 256) -> str:
    """Return a data URL of a picture that the evaluation wrote."""
    try:
        if has_file(path):
            return _embedded(load_rgb(path), side)
    except UnreadableImage:
        raise InputError(f"{path} is damaged: {EVALUATE}") from None
    raise InputError(f"{path} is missing: {EVALUATE}")


def _thumbnail(path: Path) -> str:
    """Return a data URL of a small picture; empty if the file is unreadable or too large."""
    try:
        # The header is checked first, because a small file can decode to a huge image.
        if read_header(path).pixels > SAFE_PIXELS:
            return ""
        return _embedded(load_rgb(path, THUMB))
    except UnreadableImage:
        return ""


def _embedded(rgb: np.ndarray, side: int = 256) -> str:
    """Return a uint8 (H, W, 3) picture as a WebP data URL, scaled down to a long side of at most `side`."""
    picture = small(rgb, side)[..., ::-1]
    data = cv2.imencode(".webp", np.ascontiguousarray(picture), [cv2.IMWRITE_WEBP_QUALITY, 82])[1].tobytes()
    return "data:image/webp;base64," + base64.b64encode(data).decode()
