"""`mm browse`: write the catalog for the FiftyOne App, which runs as a program in its own environment.

FiftyOne brings its own database and web server, and pins packages that clash with this project's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import pandas as pd

from mm_core.core import processes
from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import NO_PHOTOS, has_snapshot, read_snapshot
from mm_core.core.records import CATEGORIES, Report, write_bytes
from mm_core.imaging.images import UnreadableImage, encode_alpha, load_rgb, read_header
from mm_core.ingest.decode_sandbox import safely
from mm_core.ingest.export_data import photo_name
from mm_core.ingest.inbox import kept_matte
from mm_core.ingest.placement import POOLS, newest_labels
from mm_core.ingest.quarantine import list_rejects
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.seals import read_sealed_table
from mm_core.storage.store import Store, fetch_blob
from mm_core.structuring.structure import difficulty_of, scores_of

PROGRAM = Path(__file__).with_name("fiftyone_program.py")
SHOWN_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP")
"""Formats that browsers show; photos of others get a JPEG copy."""
COPY_SIDE = 1600
"""Long side of such a copy in pixels."""
METRICS = ("mse", "maxf", "biou", "conn")
TEXTS = ("name", "kind", "batch", "category", "caption", "group", "role", "source", "license", "taken_at")
"""Columns of `samples` that are shown."""
Predict = Callable[[np.ndarray, str], np.ndarray]
"""Photo, uint8 (H, W, 3), and category → matte, float32 (H, W)."""


@dataclass
class Facts:
    """What is known about accepted photos beside the catalog's `samples`: one value per sample id."""

    labels: pd.DataFrame
    """The newest labels, with the sample id as index."""
    difficulty: Mapping[str, float]
    pools: Mapping[str, str]
    hard: Mapping[str, str]
    """`simple` or `hard` in the last cycle's split."""
    scores: Mapping[str, Mapping[str, float]]
    """`champion_mse`, `candidate_maxf`, … of the last evaluation's int8 files."""
    changes: Mapping[str, str]
    """`new photo`, `new matte` or `other category`, since the last snapshot."""


def require_rows(run: StorageRun) -> None:
    """Raise InputError if the catalog has neither photos nor refused rows."""
    if run.catalog.read("samples", columns=["id"]).empty and list_rejects(run.catalog).empty:
        raise InputError(f"{run.layout.root} {NO_PHOTOS}")


def write_browse_folder(
    run: StorageRun, models: Mapping[str, Predict], folder: Path, report: Report, *, most_predictions: int
) -> Report:
    """Write the files that `fiftyone_program.py` reads: `samples.jsonl`, `about.json`, photos and predicted mattes.

    Args:
        run: Workspace, storage and progress.
        models: `champion` and `candidate`, where there are such models.
        folder: The folder; its earlier files are replaced, its database stays.
        report: Receives counts.
        most_predictions: Largest number of eval photos with predicted mattes.

    Returns:
        `report`.

    Raises:
        InputError: The catalog has neither photos nor refused rows.
    """
    require_rows(run)
    catalog, layout = run.catalog, run.layout
    samples, rejects = catalog.read("samples").sort_values("id"), list_rejects(catalog)
    writer = _Writer(folder, run.store)
    facts = _facts(layout, catalog, samples)
    judged = _worst_first(samples, facts)[:most_predictions]
    rows = []
    for number, row in enumerate(samples.to_dict("records"), 1):
        run.progress("browse", number, len(samples) + len(rejects))
        with suppress(BlobNotFound):
            shown = writer.sample({str(name): value for name, value in row.items()}, facts)
            if row["id"] in judged:
                _predict(shown, models, writer)
            rows.append(shown.fields | {"mattes": shown.mattes})
    for number, row in enumerate(rejects.to_dict("records"), len(samples) + 1):
        run.progress("browse", number, len(samples) + len(rejects))
        # A refused row without a kept file has nothing to show; `mm quarantine list` names it.
        with suppress(BlobNotFound):
            rows.append(writer.reject({str(name): value for name, value in row.items()}))
    write_bytes(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    # The App may read the store's files through the links, and nothing else.
    roots = [str(path) for path in (Path(layout.settings.store), layout.cache) if path.is_dir()]
    info = {"workspace": str(layout.root), "samples": len(samples), "refused rows": len(rejects)}
    views = saved_views()
    write_bytes(folder / "about.json", json.dumps({"views": views, "folders": roots, "info": info}).encode())
    report.metrics |= {"browse/photos": float(len(rows)), "browse/predictions": float(len(judged) * len(models))}
    report.facts["views"] = [view["name"] for view in views]
    return report


class SavedView(TypedDict):
    """A view of the App, as `fiftyone_program.py` builds it."""

    name: str
    about: str
    match: dict[str, list[str]]
    """Field → values."""
    exists: list[str]
    """Fields that a photo must have."""
    sort: str
    """Field; "" keeps the order."""
    reverse: bool


def saved_views() -> list[SavedView]:
    """Return the views for a release: the worst photos of a category, suspects, disagreements, changes."""

    def view(name: str, about: str, sort: str = "", **match: list[str]) -> SavedView:
        return {"name": name, "about": about, "match": match, "exists": [], "sort": sort, "reverse": True}

    views = [
        view(f"worst {name}", f"{name}: largest MSE of the candidate first", "candidate_mse", category=[name])
        for name in CATEGORIES
    ]
    views += [
        view("suspects", "mattes that quarantine holds for a person's look", state=["suspect"]),
        view("quarantine", "refused rows with their reasons", state=["suspect", "quarantine", "conflict"]),
        view("disagreement", "largest difference of the MSE of champion and candidate first", "disagreement"),
        view("difficult", "most difficult labelled photos first", "difficulty"),
    ]
    changed = view("changed", "photos, mattes and categories since the last cycle's snapshot")
    changed["exists"] = ["change"]
    return [*views, changed]


class Browser:
    """The running App; `end` stops it and its database.

    Args:
        python: The Python of the environment with FiftyOne.
        folder: The folder that `write_browse_folder` wrote.
        port: Port on 127.0.0.1.
    """

    def __init__(self, python: Path, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/datasets/matting-moments"
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self._process = processes.start(
                [str(PROGRAM), str(folder), str(port)],
                python=str(python),
                env=environment(folder),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Return when the App can be opened; raises InputError if the program ends before."""
        for line in self._process.stdout or ():
            if line.strip() == "ready":
                return
        raise InputError(f"FiftyOne did not start; the last lines of {self.log}:\n{tail(self.log)}")

    @property
    def ended(self) -> bool:
        """Whether the program has ended by itself."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Stop the program and the database that it started."""
        # After 20 seconds all processes of its session are killed.
        processes.end([self._process], signal.SIGINT, 20.0)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables for FiftyOne: its files in `folder`, no telemetry, no secrets, loopback only."""
    # The App gets no variable that could hold a secret.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")}
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    return kept | {
        "HOME": str(home),
        "FIFTYONE_DATABASE_DIR": str(home / "database"),
        "FIFTYONE_DEFAULT_DATASET_DIR": str(home / "datasets"),
        "FIFTYONE_DEFAULT_APP_ADDRESS": "127.0.0.1",
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "DO_NOT_TRACK": "1",
        "MPLCONFIGDIR": str(home),
    }


def tail(path: Path) -> str:
    """Return the last eight lines of a text file; "" if it is missing."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-8:]) if path.is_file() else ""


@dataclass
class _Shown:
    """An accepted photo and its row of `samples.jsonl`."""

    sample: str
    photo: Path
    category: str
    """The category, or "" if it is unknown."""
    mattes: dict[str, str]
    """Name of a matte → its file."""
    fields: dict[str, object]
    """The other columns of the row."""


@dataclass
class _Writer:
    """Writes photos under their own names and the rows about them."""

    folder: Path
    store: Store
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name in ("photos", "mattes", "predictions"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)

    def sample(self, row: Mapping[str, str], facts: Facts) -> _Shown:
        """Return an accepted photo; columns other than TEXTS are not read."""
        sample = row["id"]
        photo = self._photo(fetch_blob(self.store, sample), str(row["name"] or ""), sample)
        pool = facts.pools.get(sample, "")
        shown: dict[str, object] = {name: row[name] for name in TEXTS if isinstance(row[name], str) and row[name]}
        shown |= {"filepath": photo, "tags": [pool] if pool else [], "sample_id": sample, "state": "accepted"}
        shown |= {"split": facts.hard.get(sample), "difficulty": facts.difficulty.get(sample)}
        scores, mattes = facts.scores.get(sample, {}), dict[str, str]()
        shown |= {"change": facts.changes.get(sample), **scores}
        if sample in facts.labels.index:
            label = facts.labels.loc[sample]
            origin = label["origin"] if isinstance(label["origin"], str) else None
            shown |= {"label_origin": origin, "label_version": float(label["version"])}
            mattes["ground_truth"] = self._link(fetch_blob(self.store, label["alpha_sha256"]), sample)
        if {"champion_mse", "candidate_mse"} <= {*scores}:
            shown["disagreement"] = abs(scores["champion_mse"] - scores["candidate_mse"])
        return _Shown(sample, Path(photo), str(shown.get("category", "")), mattes, shown)

    def reject(self, row: Mapping[str, str]) -> dict[str, object]:
        """Return the row of a refused one; raises BlobNotFound if no picture of it was kept."""
        place = row["where"] or ""
        if not place:
            raise BlobNotFound(row["key"])
        # A suspect row has a kept matte, which people compare with the photo.
        suspect = row["reason"].startswith("suspect matte")
        shown: dict[str, object] = {name: row[name] for name in ("kind", "batch", "reason", "detail") if row[name]}
        shown |= {"name": row["image"], "state": "suspect" if suspect else row["verdict"], "tags": ["quarantine"]}
        shown |= {"filepath": self._photo(self.store.fetch(place), row["image"], row["key"]), "key": row["key"][:12]}
        mattes: dict[str, str] = {}
        if suspect:
            mattes["ground_truth"] = self._link(self.store.fetch(kept_matte(row["key"])), row["key"])
        return shown | {"mattes": mattes, "sample_id": row["sample_id"] or None}

    def prediction(self, model: str, sample: str, alpha: np.ndarray) -> str:
        """Write a predicted matte; return its path."""
        path = self.folder / "predictions" / f"{sample[:16]}-{model}.png"
        write_bytes(path, encode_alpha(alpha))
        return str(path)

    def _photo(self, blob: Path, name: str, sample: str) -> str:
        """Return a path with the photo's own name: a link, or a copy in a format that browsers show."""
        header = None
        with suppress(UnreadableImage):
            header = safely(read_header, blob)
        path = self.folder / "photos" / photo_name(name, sample, header.format if header else "PNG", self._taken)
        # A broken file is shown as one.
        # An orientation other than 1 needs an upright copy, because mattes are upright.
        if header is None or (header.format in SHOWN_FORMATS and header.orientation == 1):
            path.symlink_to(blob.resolve())
            return str(path)
        copy = path.with_suffix(".jpg")
        with suppress(UnreadableImage):
            rgb = safely(load_rgb, blob, COPY_SIDE)
            write_bytes(copy, cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes())
        return str(copy)

    def _link(self, blob: Path, sample: str) -> str:
        path = self.folder / "mattes" / f"{sample[:16]}.png"
        path.symlink_to(blob.resolve())
        return str(path)


def _worst_first(samples: pd.DataFrame, facts: Facts) -> list[str]:
    """Return the ids of the eval photos: the worst of each category, then the second worst of each, and so on.

    The saved views begin with these photos.
    """
    judged = samples.loc[samples["id"].map(facts.pools.get) == "eval", ["id", "category"]]
    judged = judged.assign(error=[facts.scores.get(sample, {}).get("candidate_mse", 0.0) for sample in judged["id"]])
    judged = judged.sort_values("error", ascending=False, kind="stable")
    judged["rank"] = judged.groupby("category", dropna=False).cumcount()
    return [*judged.sort_values("rank", kind="stable")["id"]]


def _predict(shown: _Shown, models: Mapping[str, Predict], writer: _Writer) -> None:
    """Add the mattes of the models to a photo."""
    rgb = load_rgb(shown.photo, COPY_SIDE)
    for name, predict in models.items():
        shown.mattes[name] = writer.prediction(name, shown.sample, predict(rgb, shown.category))


def _facts(layout: Layout, catalog: Catalog, samples: pd.DataFrame) -> Facts:
    labels = newest_labels(catalog.read("labels"))
    difficulty = difficulty_of(labels, scores_of(catalog)).dropna().to_dict()
    pools: dict[str, str] = {}
    changes: dict[str, str] = {}
    if has_snapshot(layout):
        for pool in POOLS:
            pools |= dict.fromkeys(read_pool(layout.snapshot, pool)["sample_id"], pool)
        changes = _changes(catalog, read_snapshot(layout)["catalog"], samples, labels)
    # The last split says which photos the model found hard.
    hard = {
        sample: side
        for side in ("simple", "hard")
        if (path := layout.split / f"{side}.parquet").is_file()
        for sample in read_sealed_table(path, "run `mm split` again", ["sample_id"])["sample_id"].to_pylist()
    }
    return Facts(labels.set_index("sample_id"), difficulty, pools, hard, _scores(layout), changes)


def _scores(layout: Layout) -> dict[str, dict[str, float]]:
    """Return the per-image metrics of the last evaluation's int8 models."""
    scores: dict[str, dict[str, float]] = {}
    if not has_file(layout.per_image):
        return scores
    columns = ["model", "precision", "sample_id", *METRICS]
    table = read_sealed_table(layout.per_image, "run `mm evaluate` again", columns).to_pandas()
    for model, name in ((TRAIN_STAGES[-1], "candidate"), ("champion", "champion")):
        # Phones run the int8 files, so their scores are shown.
        for row in table[(table["model"] == model) & (table["precision"] == "int8")].to_dict("records"):
            # JSON has no NaN, so undefined metrics are left out.
            values = {f"{name}_{metric}": float(row[metric]) for metric in METRICS if np.isfinite(row[metric])}
            scores.setdefault(row["sample_id"], {}).update(values)
    return scores


def _changes(
    catalog: Catalog, versions: Mapping[str, int], samples: pd.DataFrame, labels: pd.DataFrame
) -> dict[str, str]:
    """Return what changed about each photo since the catalog versions of the last snapshot."""
    before = catalog.read("samples", version=versions["samples"], columns=["id", "category"])
    categories = dict(zip(before["id"], before["category"].fillna(""), strict=True))
    old = newest_labels(catalog.read("labels", version=versions["labels"]))
    alphas = dict(zip(old["sample_id"], old["alpha_sha256"], strict=True))
    now = dict(zip(labels["sample_id"], labels["alpha_sha256"], strict=True))
    changes = {}
    for sample, category in zip(samples["id"], samples["category"].fillna(""), strict=True):
        # The first difference is named: a new photo has a new matte anyway.
        if sample not in categories:
            changes[sample] = "new photo"
        elif alphas.get(sample) != now.get(sample):
            changes[sample] = "new matte" if sample in now else "matte withdrawn"
        elif categories[sample] != category:
            changes[sample] = "other category"
    return changes
