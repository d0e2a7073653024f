"""The records that Label Studio's server sends and takes, as typed dicts of their JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class RegionValue(TypedDict, total=False):
    """The painted or chosen part of a region: `brushlabels` with its run-length code, or `choices`."""

    format: str
    rle: list[int]
    brushlabels: list[str]
    choices: list[str]


class Region(TypedDict):
    """A region that this engine makes; regions of people are read by `read_annotation`."""

    id: str
    type: str
    from_name: str
    to_name: str
    image_rotation: NotRequired[int]
    original_width: NotRequired[int]
    original_height: NotRequired[int]
    value: RegionValue


class Prediction(TypedDict):
    """The initial matte of a task."""

    model_version: str
    result: list[Region]
    score: NotRequired[float]


class NewTask(TypedDict):
    """A task to import."""

    data: dict[str, str | float]
    predictions: NotRequired[list[Prediction]]


class Task(TypedDict):
    """A task as the server returns it with `fields=task_only`."""

    id: int
    data: dict[str, str]
    """What `make_task` sent: `key`, `image`, `batch` and further columns of the server's table."""
    created_at: str
    updated_at: str
    total_annotations: int
    cancelled_annotations: int
    overlap: int
    """Number of people who are asked."""
    is_labeled: bool
    drafts: NotRequired[list[object]]


class TaskPage(TypedDict):
    """A page of a listing of tasks."""

    tasks: list[Task]
    total: int


class TaskFilter(TypedDict):
    """One condition of a listing of tasks."""

    filter: str
    operator: str
    type: str
    value: str | int | None


class Upload(TypedDict):
    """A file on the server."""

    id: int
    url: str
    """The address that a task's data refers to."""


class Account(TypedDict):
    """A person on the server."""

    id: int
    email: str | None


class ProjectSummary(TypedDict):
    """Counts of tasks."""

    tasks: int
    finished: int
    skipped: int
    open: int
    oldest_open_days: float | None
    """Age of the oldest untouched task; None if every task was touched."""
