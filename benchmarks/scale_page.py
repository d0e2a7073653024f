"""Write docs/scale.md: its measured figures come from the result files, so that they cannot be stale.

    python benchmarks/scale_page.py        # after a benchmark was run; tests/test_docs.py compares

Each figure is a cell of a table of a result file, or computed from such cells. What is assumed stands in `ASSUMED`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"
CATALOG = HERE / "catalog_scale.csv"
ASSUMED = {
    "photos": 10_000_000,
    "cores": 64,
    "gpus": 100,
    "photo_mb": 3.0,
    "matte_mb": 0.3,
    "matte_share": 0.2,
    "ocr_share": 1 / 7,
    "core_hour": 0.04,
    "gpu_hour": 2.0,
    "tb_month": 23.0,
    "passes": 10,
}


def cell(page: str, row: str, column: str) -> str:
    """Return a cell of the first table of a result page that has the column and a row that begins with `row`."""
    names: list[str] = []
    for line in (HERE / page).read_text().splitlines():
        cells = [one.strip() for one in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            names = []
        elif not names:
            names = cells
        elif cells[0].startswith(row) and column in names:
            return cells[names.index(column)]
    raise LookupError(f"{page}: no row {row!r} with a column {column!r}")


def number(page: str, row: str, column: str) -> float:
    """Return the first number of a cell."""
    text = cell(page, row, column)
    found = re.search(r"\d[\d,]*\.?\d*", text)
    if found is None:
        raise LookupError(f"{page}: {row!r}, {column!r} is {text!r}")
    return float(found[0].replace(",", ""))


def catalog_rows() -> dict[str, dict[int, dict[str, float]]]:
    """Return part → number of rows → seconds, processor and memory_mb, of catalog_scale.csv."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    with CATALOG.open() as stream:
        for row in csv.DictReader(stream):
            numbers = {name: float(row[name]) for name in ("seconds", "processor", "memory_mb")}
            found.setdefault(row["part"], {})[int(row["rows"])] = numbers
    return found


def catalog_values() -> dict[str, object]:
    """Return the section about the catalog and the limit of the snapshot; they have no figures before a run."""
    if not CATALOG.is_file():
        return {"catalog": "", "snapshot": "one process holds the whole catalog; not measured at this size"}
    rows, photos = catalog_rows(), ASSUMED["photos"]
    few, many = sorted(rows["snapshot"])

    def line(part: str, what: str) -> str:
        small, large = rows[part][few]["processor"], rows[part][many]["processor"]
        memory, growth = rows[part][many]["memory_mb"] / 1000, large / max(small, 0.001)
        return f"| {what} | {large:.2f} s | {memory:.1f} GB | {growth:.1f} | {large * photos / many:.1f} s |"

    section = [
        f"**The catalog.** Processor time and memory of one process with {many:,} rows, and the growth of the time",
        f"from {few:,} ([catalog_scale.md](../benchmarks/catalog_scale.md)). The last column extends it in proportion;",
        "that is not measured.",
        "",
        f"| part | {many:,} rows | memory | growth, {many // few} times the rows | 10 million rows |",
        "|---|---|---|---|---|",
        line("snapshot", "snapshot"),
        line("candidates", "candidates for people"),
        line("report counts", "counts of the report"),
        line("label sensor", "label sensor, a look"),
        line("arrivals sensor, next looks", f"arrivals sensor, a look at {many // 100:,} past drops"),
    ]
    seconds, memory = rows["snapshot"][many]["processor"], rows["snapshot"][many]["memory_mb"] / 1000
    factor = photos / many
    limit = f"one process: about {seconds * factor:.0f} s and {memory * factor:.0f} GB, in proportion to {many:,} rows"
    return {"catalog": "\n".join(section) + "\n\n", "snapshot": limit}


def arrival_values() -> dict[str, object]:
    """Return the values about ingest, structuring and storage."""
    a, photos, page = ASSUMED, ASSUMED["photos"], "ingest_scale.md"
    count = float(re.findall(r"^(\d+) generated photos", (HERE / page).read_text(), re.MULTILINE)[0])
    # Seconds per photo on the two cores of the measurement, into the large catalog.
    ingest = number(page, "ingest", "1,000,000 rows, s") / count
    labels = {"decode": "the one decode", "photo": "photo:", "vector": "classifier", "difficulty": "difficulty"}
    times = {name: number("structuring.md", row, "mean, ms") for name, row in labels.items()}
    ocr = number("structuring.md", "ocr", "mean, ms")
    hours = {
        "ingest_h": ingest * photos / 3600,
        "structure_h": sum(times.values()) * photos / 3.6e6,
        "ocr_h": ocr * a["ocr_share"] * photos / 3.6e6,
    }
    store_tb = photos * a["photo_mb"] / 1e6
    return {
        **hours,
        "ingest_ms": 1000 * ingest,
        "ingest_many_h": hours["ingest_h"] * 2 / a["cores"],
        "ratio": number(page, "ingest", "ratio"),
        "busy": number(page, "ingest", "of processor time"),
        "structure_ms": sum(times.values()),
        "detail": ", ".join(f"{name} {value:.0f}" for name, value in times.items()),
        "structure_many_h": hours["structure_h"] / a["cores"],
        "ocr_ms": ocr,
        "ocr_many_h": hours["ocr_h"] / a["cores"],
        "core_cost": (2 * hours["ingest_h"] + hours["structure_h"] + hours["ocr_h"]) * a["core_hour"],
        "store_tb": store_tb,
        "kept_tb": 2 * store_tb,
        "mattes_tb": photos * a["matte_share"] * a["matte_mb"] / 1e6,
        "store_cost": round(2 * store_tb * a["tb_month"], -2),
    }


def training_values() -> dict[str, object]:
    """Return the values about training."""
    a, photos = ASSUMED, ASSUMED["photos"]
    # The row with 64 photos per pool and the threads of the loop has two rounds.
    pattern = r"^\| semi \| 64 \| 4 \| (\d+) and (\d+)"
    rates = sorted(float(one) for one in re.findall(pattern, (HERE / "training_gpu.md").read_text(), re.MULTILINE)[0])
    rate = round(sum(rates) / 2, -2)
    step, per_second = 2 * 64 * a["gpus"], rate * a["gpus"]
    minutes = photos / per_second / 60
    gpu_hours = a["passes"] * minutes / 60 * a["gpus"]
    return {
        "step": step,
        "labelled_step": step // 2,
        "steps": photos / step,
        "slowest": rates[0],
        "fastest": rates[1],
        "rate": rate,
        "per_second": per_second,
        "gb_per_second": per_second * a["photo_mb"] / 1000,
        "pass_minutes": minutes,
        "gpu_hours": gpu_hours,
        "gpu_cost": gpu_hours * a["gpu_hour"],
    }


def render() -> str:
    """Return the page."""
    values = {**ASSUMED, **catalog_values(), **arrival_values(), **training_values()}
    return (HERE / "scale_page.tmpl").read_text().format(**values)


if __name__ == "__main__":
    PAGE.write_text(render())
    print(f"wrote {PAGE.name}")
