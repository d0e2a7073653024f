"""`mm quarantine`: verbs for refused rows, and the output of `mm ingest` about arrivals."""

from __future__ import annotations

from getpass import getuser
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, open_run, say, table
from mm_core.cli.words import ingest_words, reject_words
from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    from mm_core import pinned_inputs, stages
    from mm_core.core.records import Report
    from mm_core.ingest import quarantine as rejects
    from mm_core.pinned_inputs import Run
    from mm_core.storage.catalog import Catalog
    from mm_core.storage.rows import BatchRow
else:
    pinned_inputs = Deferred("mm_core.pinned_inputs")
    stages = Deferred("mm_core.stages")
    rejects = Deferred("mm_core.ingest.quarantine")

quarantine_app = typer.Typer(no_args_is_help=True, help="Show what was refused and why, and try it again.")


def say_arrivals(report: Report, run: Run, as_json: bool) -> None:
    """Print the result of the drops, with their accepted photos by category."""
    if as_json:
        return say(report, True)
    # The catalog also has earlier batches, so count only those of this report.
    batches: list[BatchRow] = report.rows("batches")
    names = {f"{row['kind']}/{row['batch']}" for row in batches}
    counts: dict[str, int] = {}
    for row in counted(run.catalog, "samples", "kind", "batch", "category"):
        if f"{row['kind']}/{row['batch']}" in names:
            name = str(row["category"])
            counts[name] = counts.get(name, 0) + int(str(row["photos"]))
    categories = [{"category": name, "photos": counts[name]} for name in sorted(counts)]
    typer.echo(ingest_words(report, categories, run.layout.settings.inbox))


def pin_after_arrivals(run: Run, report: Report) -> None:
    """Pin the inputs of the next cycle; `report.facts["pins"]` has the reason if a running cycle postpones it."""
    if "pins" in (facts := pinned_inputs.pin_when_idle(run)):
        report.facts["pins"] = facts["pins"]


def _complete_arrivals(run: Run, report: Report, json_: bool) -> None:
    """Compute the features of what was taken, pin the next cycle's inputs and print the report."""
    stages.structure(run)
    pin_after_arrivals(run, report)
    say_arrivals(report, run, json_)


def counted(catalog: Catalog, table: str, *columns: str) -> list[dict[str, object]]:
    """Count the rows of a table for each combination of values of the columns.

    Returns:
        Rows with the columns and the count `photos`; missing values are "(none)". Empty if the table does not exist.
    """
    if catalog.version(table) < 0:
        return []
    names = [f"coalesce({c}, '(none)') AS {c}" for c in columns]
    # SQL accepts column positions for GROUP BY and ORDER BY.
    order = ", ".join(str(n + 1) for n in range(len(columns)))
    found = catalog.query(
        f"SELECT {', '.join(names)}, count(*) AS photos FROM {table} GROUP BY {order} ORDER BY {order}"
    )
    return found.to_dict("records")


@quarantine_app.command("list")
def quarantine_list(json_: Json = False) -> None:
    """List every refused row with its reason."""
    # The list has duplicates and quarantined rows; `verdict` distinguishes them.
    rows = rejects.list_rejects(open_run().catalog).to_dict("records")
    if json_:
        return say({"rejects": rows}, True)
    # A person sees the columns that help to find and repair the file.
    shown = [{n: r[n] for n in ("key", "batch", "image", "verdict", "reason", "detail")} for r in rows]
    typer.echo(table(shown) if rows else "quarantine is empty")


@quarantine_app.command("show")
def quarantine_show(
    key: Annotated[str, typer.Argument(help="Key of a refused row, or its beginning.")], json_: Json = False
) -> None:
    """Show one refused row in full, and where its file lies.

    The command shows a suspect matte beside its photo.
    """
    run = open_run()
    row = rejects.show(run.catalog, run.store, key, run.layout.views)
    say(row, True) if json_ else typer.echo(reject_words(row))


@quarantine_app.command("accept")
def quarantine_accept(
    keys: Annotated[list[str], typer.Argument(help="Keys of suspect mattes, or their beginnings.")],
    why: Annotated[str, typer.Option(help="Reason why the mattes are right; it is kept with the labels.")],
    by: Annotated[str, typer.Option(help="Name of the reviewer.", show_default="the user's name")] = "",
    json_: Json = False,
) -> None:
    """Accept suspect mattes as they are; they are not held again."""
    run = open_run()
    # The reviewer and the reason are stored with the label.
    report = rejects.accept(
        run,
        keys,
        reviewer=by or getuser(),
        why=why,
    )
    _complete_arrivals(run, report, json_)


@quarantine_app.command("retry")
def quarantine_retry(
    batch: Annotated[str, typer.Argument(help="Batch whose files were repaired.")], json_: Json = False
) -> None:
    """Try the refused rows of a batch again, after its files were repaired."""
    run = open_run()
    # Repaired files are validated again like new ones.
    report = rejects.retry(run, batch)
    _complete_arrivals(run, report, json_)
