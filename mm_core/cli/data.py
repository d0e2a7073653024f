"""Verbs of `mm` that hand the data to other programs: `export-data` and `browse`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, open_layout, run_with_bars, say, table
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.ports import require_free_port

if TYPE_CHECKING:
    from mm_core.core import records
    from mm_core.services.browse import Predict
else:
    records = Deferred("mm_core.core.records")

# The root of the checkout, which contains the Makefile and `.tools`.
PROJECT = Path(__file__).resolve().parents[2]
app = typer.Typer()


@app.command("export-data")
def export_data(
    out: Annotated[Path, typer.Argument(help="New folder, which gets a sub-folder per pool.")],
    form: Annotated[
        str, typer.Option("--as", help="Form of the export: folders (image/ + alpha/), coco, or fiftyone.")
    ] = "folders",
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Pool to export, such as train_labeled or eval; may be repeated.", show_default="all"),
    ] = None,
    json_: Json = False,
) -> None:
    """Write photos and mattes of the last snapshot for other programs.

    `mm drop` reads each of the forms too.
    """
    from mm_core.ingest.export_data import export_pools

    with run_with_bars() as run, records.timed(records.Report("export-data")) as report:
        export_pools(run, out, report, form=form, pools=pool or ())
    if json_:
        return say(report, True)
    typer.echo(f"{table(report.tables['pools'])}\n\n{form}: {out}")


@app.command()
def browse(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the App on 127.0.0.1.")] = 5151,
    predictions: Annotated[
        int, typer.Option(min=0, help="Number of worst eval photos that get the mattes of champion and candidate.")
    ] = 100,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write the files for the App, and do not start it.")
    ] = False,
    json_: Json = False,
) -> None:
    """Open the catalog in the FiftyOne App, until Ctrl-C.

    It shows photos, mattes, quarantine, splits, predictions and saved views.
    """
    from mm_core.services.browse import Browser, require_rows, write_browse_folder

    layout = open_layout()
    # An empty catalog is named before FiftyOne (0.9 GB) is installed for it.
    with run_with_bars() as run:
        require_rows(run)
    # The environment is installed before the files are written: who waits for it should not wait twice.
    if not write_only:
        # Checked before the folder is written: an App that is open reads it.
        require_free_port(port)
        _require_fiftyone(layout)
    folder = layout.cache / "browse"
    with run_with_bars() as run, records.timed(records.Report("browse")) as report:
        models = _models(layout) if predictions else {}
        write_browse_folder(run, models, folder, report, most_predictions=predictions)
    if write_only:
        return say(report, json_)
    typer.echo("starting FiftyOne …", err=True)
    # SIGTERM becomes SystemExit, so that `finally` stops the App and its database.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    browser = Browser(layout.settings.fiftyone_python, folder, port)
    try:
        browser.wait_until_ready()
        typer.echo(f"FiftyOne  {browser.url}\nviews     {', '.join(report.fact('views', list))}\nCtrl-C ends it")
        sys.stdout.flush()
        while not browser.ended:
            time.sleep(0.3)
        raise InputError(f"FiftyOne ended by itself: {browser.log} says why")
    except KeyboardInterrupt:
        pass
    finally:
        browser.end()


def _require_fiftyone(layout: Layout) -> None:
    """Install FiftyOne into `.tools/fiftyone` where it is missing; raise InputError if that fails."""
    python = layout.settings.fiftyone_python
    if python.is_file():
        return
    # Only the default installation in a checkout can be created here.
    if python != PROJECT / ".tools" / "fiftyone" / "bin" / "python" or not (PROJECT / "Makefile").is_file():
        raise InputError(f"{python} is missing: run `make browse` in the project")
    typer.echo("installing FiftyOne (make browse), once …", err=True)
    if subprocess.run(["make", "-C", str(PROJECT), "browse"], stdout=sys.stderr).returncode:
        raise InputError("`make browse` failed: see above")


def _models(layout: Layout) -> dict[str, Predict]:
    """Return champion and candidate, as far as there are such models."""
    from mm_core.cli.compare import load_model

    models: dict[str, Predict] = {}
    for name in ("champion", "candidate"):
        try:
            models[name] = load_model(layout, name).predict
        except InputError:
            continue
    return models
