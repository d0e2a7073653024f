"""The `mm` command. Every verb calls a function of `mm_core.stages` or of another package and prints the result."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core import __version__
from mm_core.cli.compare import app as compare_app
from mm_core.cli.data import app as data_app
from mm_core.cli.help import HELP, OrderedGroup, arrange
from mm_core.cli.label import app as label_app
from mm_core.cli.operate import app as operate_app
from mm_core.cli.quarantine import counted, pin_after_arrivals, quarantine_app, say_arrivals
from mm_core.cli.release import app as release_app
from mm_core.cli.terminal import (
    Inbox,
    Json,
    count_of,
    open_layout,
    open_run,
    progress_bars,
    run_with_bars,
    say,
    table,
)
from mm_core.cli.words import drop_words, eval_words, held_words, reason_line
from mm_core.core.categories import KINDS
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError, MattingError
from mm_core.core.folders import has_file, require_folder
from mm_core.core.settings import Settings

if TYPE_CHECKING:
    from mm_core import operations, pinned_inputs, stages
    from mm_core.cli import predict as predictions
    from mm_core.core import locks
    from mm_core.core.records import Report
    from mm_core.eval import evaluate as evaluations
    from mm_core.gallery import serve as galleries
    from mm_core.ingest import datasets
    from mm_core.ingest import drop as drops
    from mm_core.ingest import inbox as inboxes
    from mm_core.ingest import snapshot as snapshots
    from mm_core.pinned_inputs import Run
    from mm_core.services import ui as pages
    from mm_core.storage import retry
    from mm_core.storage.catalog import Catalog
else:
    # The stages import slow packages, which `mm --help` does not need.
    operations = Deferred("mm_core.operations")
    pinned_inputs = Deferred("mm_core.pinned_inputs")
    stages = Deferred("mm_core.stages")
    predictions = Deferred("mm_core.cli.predict")
    locks = Deferred("mm_core.core.locks")
    evaluations = Deferred("mm_core.eval.evaluate")
    galleries = Deferred("mm_core.gallery.serve")
    datasets = Deferred("mm_core.ingest.datasets")
    drops = Deferred("mm_core.ingest.drop")
    inboxes = Deferred("mm_core.ingest.inbox")
    snapshots = Deferred("mm_core.ingest.snapshot")
    pages = Deferred("mm_core.services.ui")
    retry = Deferred("mm_core.storage.retry")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, cls=OrderedGroup)
catalog_app = typer.Typer(no_args_is_help=True, help="Care for the catalog's files.")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(catalog_app, name="catalog")
app.add_typer(label_app, name="label")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mm {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


@app.callback(help=HELP)
def options(version: Version = False) -> None:
    """Hold the options of `mm` itself; `HELP` is what `mm --help` shows."""


Again = Annotated[bool, typer.Option("--again", help="Start a cycle even if nothing is new since the last one.")]

# ── data ─────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def demo(
    cycles: Annotated[int, typer.Option(min=1, max=3, help="Number of cycles to run.")] = 3,
    json_: Json = False,
) -> None:
    """Run three cycles on generated samples.

    A first model is promoted, an improved one too, and a poisoned one is refused. Other verdicts end with exit code 1.
    """
    # Small batches do not benefit from a second thread, and they become slow if another program uses the core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from mm_core.cli.demo import require_promise, run_demo

    with progress_bars() as progress:
        result = run_demo(Settings.of_demo(), cycles=cycles, progress=progress)
    say(result.model_dump(), json_)
    require_promise(result)


@app.command()
def drop(  # noqa: PLR0913  each argument is an option of the command
    folder: Annotated[Path, typer.Argument(help="Folder of photos, or of a COCO or FiftyOne data set.")],
    kind: Annotated[str, typer.Option(help=f"Kind of the drop: {', '.join(KINDS)}.")],
    batch: Annotated[str, typer.Option(help="Name of the batch.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="COCO file of the labels.", show_default="labels.json in the folder, if it is one"),
    ] = None,
    field: Annotated[
        str, typer.Option(help="Field of a FiftyOne export that holds the mattes.", show_default="ground_truth")
    ] = "",
    inbox: Inbox = None,
    json_: Json = False,
) -> None:
    """Package a folder of photos, a COCO data set or a FiftyOne export as a drop."""
    layout = open_layout(inbox)
    # A drop is written file by file, which needs a local folder.
    if "://" in layout.settings.inbox:
        raise InputError(
            f"mm drop writes to a folder, not to {layout.settings.inbox}: give --inbox FOLDER and upload it"
        )
    if listed := datasets.labels_file(folder, labels):
        dataset = datasets.read_dataset(folder, listed, field)
        summary = datasets.package_dataset(dataset, Path(layout.settings.inbox), kind, batch)
    else:
        summary = drops.summarize_drop(
            folder, drops.package_folder(folder, Path(layout.settings.inbox), kind, batch).path
        )
    say(summary, True) if json_ else typer.echo(drop_words(summary))


@app.command()
def ingest(
    inbox: Inbox = None,
    batch: Annotated[
        str | None, typer.Option(help="Name of the only batch to take.", show_default="all that are ready")
    ] = None,
    json_: Json = False,
) -> None:
    """Take all ready drops, or one, into the catalog and compute their features."""
    # The default inbox need not exist yet; one that a person names must.
    if inbox and "://" not in inbox:
        require_folder(Path(inbox).expanduser())
    with run_with_bars(inbox) as run:
        report = stages.ingest(run, batch=batch)
        # Features are computed directly after ingest, so that one command completes an arrival.
        structured = stages.structure(run)
    # Merge both reports into one result.
    report.metrics |= structured.metrics
    report.facts |= structured.facts
    report.tables |= {"drift": structured.tables.get("drift", [])}
    report.pictures |= structured.pictures
    pin_after_arrivals(run, report)
    say_arrivals(report, run, json_)


@app.command()
def status(json_: Json = False) -> None:
    """Show batches, photos, quarantine, the last verdict and the champion."""
    run = open_run()
    catalog, layout = run.catalog, run.layout
    batches = catalog.read("batches", columns=["kind", "batch", "state", "accepted", "quarantined", "duplicates"])
    ready = inboxes.ready_batches(run)
    # A program gets the whole dict; a person gets the lines below.
    result = {
        "workspace": str(layout.root),
        "waiting": [drop.name for drop in ready],
        "unread": list(inboxes.unread_folders(run, ready)),
        "batches": batches.sort_values(["kind", "batch"]).to_dict("records"),
        "samples": counted(catalog, "samples", "category", "kind"),
        "labelled": _labelled(catalog),
        "rejects": counted(catalog, "rejects", "verdict", "reason"),
        "verdict": pinned_inputs.recorded_verdict(layout).decision if has_file(layout.verdict) else None,
        **_champion(run),
        "cycle": locks.cycle_holder(layout),
        "eval": snapshots.eval_state(run.params.snapshot, catalog),
    }
    if json_:
        return say(result, True)
    typer.echo(f"workspace {result['workspace']}\n")
    if waiting := result["waiting"]:
        typer.echo(f"waiting in the inbox: {', '.join(waiting)}\n  next: `mm ingest`, or `mm run` for a whole cycle\n")
    if unread := result["unread"]:
        typer.echo("\n".join(reason_line("not used", row) for row in unread) + "\n")
    for name in ("batches", "samples", "rejects"):
        typer.echo(f"{name}\n{table(result[name])}\n" if result[name] else f"{name}: none\n")
    # The latest row of a batch is its present state.
    latest = catalog.read("batches", columns=["kind", "batch", "state", "reason", "ingested_at"])
    latest = latest.sort_values("ingested_at").drop_duplicates(["kind", "batch"], keep="last")
    if held := held_words(latest.loc[latest["state"] == "held"].to_dict("records")):
        typer.echo(held + "\n")
    if lines := eval_words(result["eval"]["words"]):
        typer.echo("\n".join(lines[1:]) + "\n")
    typer.echo(f"labelled photos: {result['labelled']}")
    typer.echo(f"last verdict:    {result['verdict'] or 'no cycle yet'}")
    typer.echo(f"champion:        {result['champion'] or result['registry_fault'] or 'none yet'}")
    typer.echo(f"cycle at work:   {result['cycle'] or 'none'}")


def _champion(run: Run) -> dict[str, str | None]:
    """Return the champion's version, or why the registry cannot tell it."""
    version, fault = run.registry.find_champion()
    return {"champion": version, "registry_fault": fault}


def _labelled(catalog: Catalog) -> int:
    # Version -1: the table does not exist yet.
    if catalog.version("labels") < 0:
        return 0
    return int(
        catalog.query("SELECT count(DISTINCT sample_id) AS photos FROM labels WHERE withdrawn_at IS NULL")[
            "photos"
        ].iloc[0]
    )


@app.command()
def forget(
    photos: Annotated[
        list[str] | None,
        typer.Argument(help="Sample ids or their beginnings, photo files, or drops (kind/batch)."),
    ] = None,
    group: Annotated[str | None, typer.Option(help="Declared group whose photos are all removed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a question; scripts need it.")] = False,
    json_: Json = False,
) -> None:
    """Remove photos for good, and list every model that was trained on them."""
    run = open_run()
    # The plan resolves names to ids, so that exactly the confirmed photos are removed.
    plan = operations.plan_forgetting(run, photos or [], group)
    if dry_run:
        return say(plan, json_)
    if not yes:
        goes, number = plan.tables["goes"], count_of(int(plan.metrics["forget/photos"]), "photo")
        typer.echo(
            table(goes) if goes else "these photos have gone already; what a killed run left is removed", err=True
        )
        # Without a terminal a question cannot be answered, so a script must pass --yes.
        if not sys.stdin.isatty():
            raise InputError(f"mm forget: {number} would go for good: add --yes")
        typer.confirm(f"Remove {number} for good?", abort=True, err=True)
    say(operations.forget(run, plan.fact("ids", list)), json_)


@catalog_app.command("compact")
def catalog_compact(json_: Json = False) -> None:
    """Merge small files, and delete the files of old versions."""
    run = open_run()
    say(operations.compact(run), json_)


# ── one cycle ────────────────────────────────────────────────────────────────────────────────────


@app.command()
def run(inbox: Inbox = None, again: Again = False, json_: Json = False) -> None:
    """Run one whole cycle, from ingest to the gate's verdict.

    If the gate passes, the model is exported and promoted. If nothing is new, no cycle runs.
    """
    with run_with_bars(inbox) as run:
        reports = stages.run_cycle(run, again=again)
    verdict = pinned_inputs.recorded_verdict(run.layout)
    if json_:
        return say({name: asdict(report) for name, report in reports.items()}, True)
    for name, report in reports.items():
        typer.echo(f"{name:18} {report.seconds:8.1f} s")
    # Without new inputs the last verdict is not repeated.
    if nothing_new := reports["pin_inputs"].facts.get("nothing_new"):
        return typer.echo(f"\nnothing new: {nothing_new}; `mm run --again` runs a cycle nevertheless")
    typer.echo(f"\nverdict: {verdict.decision}")
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    typer.echo(f"report:  {run.layout.html_report}")


def _stage_command(name: str, summary: str, function: str = "") -> None:
    """Add a verb that calls a function of `stages`, by default the function with the verb's name."""

    def command(json_: Json = False) -> None:
        # The function is looked up at the call, because `stages` is loaded lazily.
        stage: Callable[..., Report] = getattr(stages, function or name.replace("-", "_"))
        with run_with_bars() as run:
            say(stage(run), json_)

    app.command(name, help=summary)(command)


@app.command("pin-inputs")
def pin_inputs(again: Again = False, json_: Json = False) -> None:
    """Decide whether there is a cycle, and pin what it starts from."""
    run = open_run()
    say(stages.pin_inputs(run, again=again), json_)


_stage_command("snapshot", "Freeze one catalog version; eval photos never move and never leak.")
_stage_command("split", "Divide the labelled training photos into simple and hard.")
_stage_command("train-simple", "Train on the simple photos, from the champion or from scratch.")
_stage_command("train-hard", "Train on the hard photos, with a share of simple ones against forgetting.")
_stage_command("train-semi", "Train on unlabelled photos by agreement of perturbed decoders.")
_stage_command("train-multimodal", "Train with captions, which help where the photo alone is unsure.")
_stage_command("report", "Write the HTML page about the cycle.", "html_report")


@app.command()
def evaluate(
    truth: Annotated[Path | None, typer.Option(help="Manifest of the photos: image, alpha, category.")] = None,
    pred: Annotated[Path | None, typer.Option(help="Folder of mattes to evaluate, <stem>.png per photo.")] = None,
    json_: Json = False,
) -> None:
    """Evaluate every stage, champion and anchor on the frozen eval set.

    With --truth and --pred, evaluate any folder of mattes instead.
    """
    # A single one of the two options has no meaning.
    if (truth is None) != (pred is None):
        raise InputError("mm evaluate: --truth and --pred go together")
    if truth is not None and pred is not None:
        return say(evaluations.evaluate_folder(truth, pred), json_)
    with run_with_bars() as run:
        say(stages.evaluate(run), json_)


# Commands of the other modules are listed at the top level, not as groups.
app.registered_commands += release_app.registered_commands + operate_app.registered_commands
app.registered_commands += compare_app.registered_commands + data_app.registered_commands
app.registered_groups += release_app.registered_groups


# ── use of the models ───────────────────────────────────────────────────────────────────────────


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the mattes; no photo is ever replaced.")],
    model: Annotated[
        str, typer.Option(help="Model: champion, candidate, a registry version, or a .safetensors file.")
    ] = "champion",
    category: Annotated[
        str, typer.Option(help="Category of all photos, which selects the decoder.", show_default="one for each photo")
    ] = "",
    cutout: Annotated[bool, typer.Option("--cutout", help="Write the cut-outs too, as RGBA PNG.")] = False,
    json_: Json = False,
) -> None:
    """Write the matte of each photo at the photo's own size, as `<stem>.png`.

    An unreadable photo is named at the end, and the command exits with 2.
    """
    with run_with_bars() as run:
        report = predictions.predict_files(run, images, out, model=model, category=category, cutout=cutout)
    say(report, json_)
    # The readable photos are done; the exit code reports the others.
    if unreadable := report.tables["unreadable"]:
        first = unreadable[0]["reason"]
        raise InputError(f"{len(unreadable)} of {len(unreadable) + len(report.tables['mattes'])} photos: {first}")


@app.command()
def moments(
    gallery: Annotated[Path, typer.Argument(help="Folder of photos.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the moments.", show_default="<workspace>/moments")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model: champion, a registry version, a bundle's folder, a .safetensors file, or none.")
    ] = "champion",
    json_: Json = False,
) -> None:
    """Group a gallery into moments, with titles, best photos and pieces.

    Moments are grouped by time and place.
    """
    # Checked first: otherwise the error about a missing model hides this one.
    require_folder(gallery)
    with run_with_bars() as run:
        say(operations.moments(run, gallery, out or run.layout.moments, model=model), json_)


@app.command()
def gallery(
    folder: Annotated[Path, typer.Argument(help="Folder of photos that `mm moments` has grouped.")],
    moments_: Annotated[
        Path | None,
        typer.Option("--moments", help="Folder that `mm moments` wrote.", show_default="<workspace>/moments"),
    ] = None,
    model: Annotated[str, typer.Option(help="Model: champion, a registry version, or a bundle's folder.")] = "champion",
    host: Annotated[
        str, typer.Option(help="Address of the page; any other opens it to the network, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8090,
) -> None:
    """Serve the page of moments, until Ctrl-C.

    On it people lift, place, change and correct subjects. The model runs in the browser.
    """
    require_folder(folder)
    run = open_run()
    galleries.serve(run, folder, moments_ or run.layout.moments, model=model, host=host, port=port)


@app.command()
def ui(
    port: Annotated[
        int, typer.Option(min=1, max=65533, help="Port of Dagster; MLflow and the pages take the next two.")
    ] = 3000,
    demo_: Annotated[
        bool, typer.Option("--demo", help="Show the demo's workspace, even if data/ holds another one.")
    ] = False,
) -> None:
    """Serve Dagster, MLflow and the workspace's pages here, until Ctrl-C.

    All listen on 127.0.0.1.
    """
    settings = pages.shown(demo_)
    typer.echo(f"workspace  {settings.workspace}")
    pages.serve(settings, port)


# This must follow the registration of all verbs.
arrange(app)


def main() -> None:
    """Run the command. A MattingError becomes one line on stderr and exit code 2 (bad input) or 1."""
    # Threads that spin at OpenMP's barriers make training many times slower if other programs run too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A file name may have bytes or letters that the terminal's encoding lacks. They are spelled out.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # The name also for `python -m mm_core`: help shows it, and the shell completes it.
        app(prog_name="mm", standalone_mode=True)
    except MattingError as error:
        typer.echo(f"mm: {error}", err=True)
        # Exit code 2 is bad input, 1 is any other failure.
        sys.exit(2 if isinstance(error, InputError) else 1)
    # Faults of a disk or a file become one line; all other errors keep their traceback.
    except Exception as error:
        said = retry.plain_fault(error)
        if said is None:
            raise
        typer.echo(f"mm: {said}", err=True)
        sys.exit(1)
