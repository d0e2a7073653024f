"""Jobs and schedules that look after an installation: a backup each night, compaction of the catalog each week."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from mm_core import operations
from mm_core.core.errors import InputError
from mm_core.core.records import Report, timed
from mm_core.core.settings import backup_place, time_zone
from mm_core.services.backup import back_up
from pipelines.metadata import of_report
from pipelines.resources import Workspace, plain_failures


class BackupOptions(dg.Config):
    """Options of a backup, as those of `mm backup`."""

    to: str = Field(default="", description="Folder or s3://bucket/prefix, not in the workspace. Empty: MM_BACKUP_TO.")
    photos: bool = Field(default=True, description="False where the store is copied by other means.")
    keep: int = Field(default=14, ge=0, description="Newest backups that stay; 0 keeps all.")


@dg.op
def write_backup(context: dg.OpExecutionContext, workspace: Workspace, config: BackupOptions) -> Iterator[dg.Output]:
    """Copy catalog, photos, registry, run history, reports and bundles; what an earlier backup holds is not copied."""
    with plain_failures(), timed(Report("backup")) as report:
        place = config.to or backup_place()
        if not place:
            raise InputError("no place for the backup: set MM_BACKUP_TO, or `to` in the launchpad")
        settings, log = workspace.layout().settings, context.log
        back_up(
            settings,
            place,
            report,
            photos=config.photos,
            keep=config.keep,
            progress=lambda what, done, total: log.debug(f"{what}: {done} of {total}"),
        )
    yield dg.Output(None, metadata=of_report(report))


@dg.op
def compact_catalog(workspace: Workspace) -> Iterator[dg.Output]:
    """Merge small files of the catalog and remove those of versions that no cycle is pinned to."""
    with plain_failures():
        report = operations.compact(workspace.run())
    yield dg.Output(None, metadata=of_report(report))


@dg.job(executor_def=dg.in_process_executor, description="Write a backup of the workspace and the store.")
def backup() -> None:
    """Run one backup."""
    write_backup()


@dg.job(executor_def=dg.in_process_executor, description="Compact the tables of the catalog.")
def compact() -> None:
    """Run one compaction."""
    compact_catalog()


@dg.schedule(
    job=backup,
    cron_schedule="0 1 * * *",
    execution_timezone=time_zone(),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A backup each night at 01:00 (`MM_TIME_ZONE`) to `MM_BACKUP_TO`; without it, none.",
)
def nightly_backup() -> dg.RunRequest | dg.SkipReason:
    """Request a backup if there is a place for it."""
    return dg.RunRequest() if backup_place() else dg.SkipReason("MM_BACKUP_TO is not set: no backups are written")


weekly_compaction = dg.ScheduleDefinition(
    name="weekly_compaction",
    job=compact,
    cron_schedule="0 2 * * 0",
    execution_timezone=time_zone(),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Compaction of the catalog each Sunday at 02:00 (`MM_TIME_ZONE`), a day before the weekly cycle.",
)
