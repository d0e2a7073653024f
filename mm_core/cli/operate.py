"""Verbs of `mm` for operating an installation: backup, restore, check, parameter reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, progress_bars, say
from mm_core.core.deferred import Deferred
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings

if TYPE_CHECKING:
    from mm_core.cli import reference as references
    from mm_core.core import records
    from mm_core.services import backup as backups
    from mm_core.services import check as checks
    from mm_core.services import repair as repairs
else:
    records = Deferred("mm_core.core.records")
    references = Deferred("mm_core.cli.reference")
    backups = Deferred("mm_core.services.backup")
    checks = Deferred("mm_core.services.check")
    repairs = Deferred("mm_core.services.repair")

app = typer.Typer()


@app.command()
def backup(
    to: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix for the backup, outside of the workspace.")],
    photos: Annotated[bool, typer.Option(help="Copy the photos too, or leave them to other means.")] = True,
    keep: Annotated[int, typer.Option(min=0, help="Number of newest backups that stay; 0 keeps all.")] = 0,
    json_: Json = False,
) -> None:
    """Back up all data that cannot be computed again.

    That is catalog, photos, registry, run history, reports and bundles. What an earlier backup holds is not copied.
    PostgreSQL databases are in it where MM_BACKUP_DATABASES names their URLs.
    """
    with progress_bars() as progress, records.timed(records.Report("backup")) as report:
        backups.back_up(Settings.from_env(), to, report, photos=photos, keep=keep, progress=progress)
    say(report, json_)


@app.command()
def restore(
    source: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix that `mm backup` wrote to.")],
    at: Annotated[str | None, typer.Option(help="Time of the backup.", show_default="the newest")] = None,
    json_: Json = False,
) -> None:
    """Write a backup into an empty workspace and an empty store.

    Each file is checked against its digest.
    """
    with progress_bars() as progress, records.timed(records.Report("restore")) as report:
        backups.restore(Settings.from_env(), source, report, at=at, progress=progress)
    say(report, json_)


@app.command()
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore damaged files, and delete those that are computed again.")
    ] = False,
    json_: Json = False,
) -> None:
    """Check all stored data against their digests and against one another.

    These are blobs, rows, pins, registry, bundles, checkpoints, snapshots and databases.
    The command exits with 1 where a fault is left.
    """
    layout = Layout(Settings.from_env())
    with progress_bars() as progress, records.timed(records.Report("check")) as report:
        faults = checks.check(layout, report, progress=progress)
        # Without --repair the check only reads.
        if repair and faults:
            repairs.repair(layout, faults)
            # Check again, because a repair can fail or reveal another fault.
            left = checks.check(layout, report, progress=progress)
            report.tables["repaired"] = [asdict(fault) for fault in faults if fault.repaired]
            # For faults that could not be repaired, the message of the attempt is more precise.
            tried = {(fault.kind, fault.where): fault for fault in faults if not fault.repaired}
            faults = [tried.get((fault.kind, fault.where), fault) for fault in left]
            report.tables["faults"] = [asdict(fault) for fault in faults]
    say(report, json_)
    if faults:
        raise typer.Exit(1)


@app.command()
def params() -> None:
    """Print every parameter with default, allowed values and meaning.

    The page is docs/parameters.md.
    """
    typer.echo(references.reference(), nl=False)
