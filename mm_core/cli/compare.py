"""`mm compare`: one page with the mattes of two models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, count_of, open_layout, run_with_bars, say, table
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.folders import has_file, misplaced
from mm_core.core.layout import TRAIN_STAGES, Layout

if TYPE_CHECKING:
    import numpy as np

    from mm_core.core import records
    from mm_core.core.records import Report
    from mm_core.ingest.matte_pairs import MatteFinder
    from mm_core.ingest.truths import Truth
    from mm_core.matter import Matter
    from mm_core.storage.catalog import Catalog
    from mm_core.storage.run import StorageRun
    from mm_core.storage.store import Store
else:
    records = Deferred("mm_core.core.records")

app = typer.Typer()
MARK = b"<title>Models compared: "
"""Text of every page of this command; a later run replaces only files with it."""


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="Model A: champion, candidate, a version (@3), a bundle's folder, or a file.")
    ],
    b: Annotated[str, typer.Argument(help="Model B, named in the same way.")],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File of the page.", show_default="<workspace>/reports/compare.html"),
    ] = None,
    show: Annotated[
        int, typer.Option(min=1, max=400, help="Number of photos with pictures; the metrics cover all photos.")
    ] = 40,
    json_: Json = False,
) -> None:
    """Write one page with the mattes of two models side by side.

    It shows their difference too, and metrics where the true matte is at hand.
    """
    page = out or open_layout().reports / "compare.html"
    with run_with_bars() as run:
        report = compare_models(run, (a, b), photos, page, shown=show)
    say(report, True) if json_ else typer.echo(_words(report))


@dataclass(frozen=True)
class _Job:
    photo: Path
    category: str
    truth: Truth | None
    """The matte beside the photo, if there is one."""


def compare_models(
    run: StorageRun, models: tuple[str, str], photos: Sequence[Path], page: Path, *, shown: int
) -> Report:
    """Predict every photo with both models and write the page.

    Args:
        run: Params, workspace, storage and progress; mattes are compared at `evaluate.max_side`.
        models: Model A and model B, as `load_model` takes them.
        photos: Photos and folders of photos.
        page: The HTML file.
        shown: Number of photos with pictures.

    Returns:
        The report, with a row per photo in `per_image` and per metric in `summary`.

    Raises:
        InputError: A model or photo does not exist, no photo is readable, or `page` is not a page of this command.
    """
    from mm_core.eval.compare import ComparePage, Matted
    from mm_core.imaging.images import UnreadableImage, load_rgb

    jobs = list(_jobs(photos))
    # Checked before the predictions, which may take minutes.
    run.layout.require_free(page, "name another file with -o")
    _check_page(page, [job.photo for job in jobs])
    pair = (load_model(run.layout, models[0]), load_model(run.layout, models[1]))
    names = (_title(models[0], pair[0]), _title(models[1], pair[1]))
    known = _Known(run.catalog, run.store, [job.photo for job in jobs])
    compared, unreadable = ComparePage(names, shown), []
    with records.timed(records.Report("compare")) as report:
        for number, job in enumerate(jobs, 1):
            run.progress("compare", number, len(jobs))
            try:
                rgb = load_rgb(job.photo, run.params.evaluate.max_side)
                truth = _truth(job, known, rgb.shape[:2])
            # One bad photo must not stop a folder of many.
            except UnreadableImage as error:
                unreadable.append({"image": str(job.photo), "reason": str(error)})
                continue
            category = job.category or known.category(job.photo)
            mattes = pair[0].predict(rgb, category), pair[1].predict(rgb, category)
            compared.add(Matted(str(job.photo), category, rgb, mattes, truth))
        if not compared.rows:
            raise InputError(f"no photo could be read: {unreadable[0]['reason']}")
        # The name of a photo may hold bytes that are not UTF-8.
        records.write_bytes(page, compared.render(unreadable).encode(errors="backslashreplace"))
        report.facts |= {"page": str(page), "a": names[0], "b": names[1]}
        report.tables |= {"summary": compared.summary(), "per_image": compared.rows, "unreadable": unreadable}
        report.metrics["compare/photos"] = float(len(compared.rows))
    return report


def load_model(layout: Layout, name: str) -> Matter:
    """Return a model by name.

    Args:
        layout: The workspace.
        name: What `Matter.load` takes; `@3` or `@champion` as MLflow writes it; or `candidate`, the model of the last
            cycle, promoted or not.

    Raises:
        InputError: The model does not exist.
    """
    from mm_core.matter import Matter

    plain = name.removeprefix("@")
    weights = layout.model(TRAIN_STAGES[-1])
    if plain != "candidate" or not has_file(weights):
        return Matter.load(plain, layout.root)
    # The int8 files are what a bundle would ship. They are older than the weights until `mm evaluate` has run.
    quantised = sorted(layout.quantised.glob("*.int8.onnx"))
    fresh = quantised and min(path.stat().st_mtime for path in quantised) >= weights.stat().st_mtime
    return Matter.load(layout.quantised if fresh else weights, layout.root)


def _title(asked: str, matter: Matter) -> str:
    plain = asked.removeprefix("@")
    return plain if plain == matter.name or matter.name in plain or plain == "candidate" else f"{plain} ({matter.name})"


class _Known:
    """Labels and categories of photos that are in the catalog, found by the digest of their bytes."""

    def __init__(self, catalog: Catalog, store: Store, photos: Sequence[Path]) -> None:
        from mm_core.ingest.placement import newest_labels

        self._store = store
        self._ids = {photo: records.sha256_file(photo) for photo in photos}
        wanted = sorted(set(self._ids.values()))
        samples = catalog.read("samples", columns=["id", "category"], filters=[("id", "in", wanted)])
        self._categories = dict(zip(samples["id"], samples["category"].fillna(""), strict=True))
        labels = newest_labels(catalog.read("labels", filters=[("sample_id", "in", wanted)]))
        self._alphas = dict(zip(labels["sample_id"], labels["alpha_sha256"], strict=True))

    def category(self, photo: Path) -> str:
        return self._categories.get(self._ids[photo], "")

    def alpha(self, photo: Path) -> Path | None:
        from mm_core.storage.store import fetch_blob

        digest = self._alphas.get(self._ids[photo])
        return fetch_blob(self._store, digest) if digest else None


def _truth(job: _Job, known: _Known, size: tuple[int, int]) -> np.ndarray | None:
    """Return the true matte at the given size (height, width): the catalog's, or the one beside the photo."""
    import cv2

    from mm_core.imaging.images import load_alpha

    blob = known.alpha(job.photo)
    alpha = load_alpha(blob) if blob else job.truth.load() if job.truth else None
    return None if alpha is None else cv2.resize(alpha, size[::-1], interpolation=cv2.INTER_AREA)


def _jobs(photos: Sequence[Path]) -> Iterator[_Job]:
    from mm_core.core.spellings import NO_PHOTOS
    from mm_core.ingest.matte_pairs import MatteFinder, category_in
    from mm_core.ingest.truths import Truth

    # A photo is compared with the truth where the folder names one for it.
    for given in photos:
        # Reading a pipe would wait for its writer.
        if not given.is_file() and not given.is_dir():
            raise InputError(f"{given}: no such file or folder; name photos, or folders of photos")
        folder = given if given.is_dir() else given.parent
        finder = MatteFinder(folder)
        files = sorted(p for p in given.rglob("*") if _is_photo(p, finder)) if given.is_dir() else [given]
        if not files:
            raise InputError(f"{given}: {NO_PHOTOS}")
        for photo in files:
            inside, matte = photo.relative_to(folder), finder.matte_of(photo)
            truth = Truth(str(photo), str(photo), "", photo, matte) if matte else None
            yield _Job(photo, category_in(inside, folder), truth)


def _is_photo(path: Path, finder: MatteFinder) -> bool:
    from mm_core.core.spellings import PHOTOS, is_hidden

    hidden = is_hidden(path.relative_to(finder.folder))
    return path.is_file() and path.suffix.lower() in PHOTOS and not hidden and not finder.is_matte(path)


def _check_page(page: Path, photos: Sequence[Path]) -> None:
    if page.is_dir():
        raise InputError(f"{page} is a folder: name a file, such as {page / 'compare.html'}")
    # Reading a pipe would wait for its writer.
    if what := misplaced(page):
        raise InputError(f"{page} is {what}: name another file with -o")
    if page.resolve() in {photo.resolve() for photo in photos}:
        raise InputError(f"{page} is one of the photos: name another file with -o")
    if page.exists() and MARK not in page.read_bytes()[:4096]:
        raise InputError(f"{page} is there already and was not made by this command: name another file with -o")


def _words(report: Report) -> str:
    rows = report.tables["per_image"]
    lines = [f"{count_of(len(rows), 'photo')}  A: {report.facts['a']}  B: {report.facts['b']}"]
    if summary := report.tables["summary"]:
        lines += ["", table(summary)]
    else:
        lines.append("no true mattes at hand, so no metrics: `mm compare --help`")
    lines += [f"not read: {row['reason']}" for row in report.tables["unreadable"]]
    return "\n".join([*lines, "", f"page: {report.facts['page']}"])
