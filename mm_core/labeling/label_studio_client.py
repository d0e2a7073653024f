"""Client of a Label Studio server; no other module connects to one.

Projects, tasks, annotations, webhooks and users go through label-studio-sdk. Only pictures and imports are plain JSON
over httpx: for an import the SDK traverses every number of a run-length code (twelve times the work of `json.dumps`),
and it has no call for several uploads or for the list of uploads. Properties of the server (1.23) behind this module:

- it accepts the same task twice without an error;
- `filter:tasks:updated_at` covers new, edited, skipped and deleted annotations;
- an import is one transaction;
- uploads that no task refers to are never deleted;
- a request to delete uploads without a list deletes all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

from mm_core.core.deferred import Deferred
from mm_core.core.errors import LabelServerError
from mm_core.labeling.label_studio_format import LABEL_CONFIG, WHY
from mm_core.labeling.label_studio_http import PatientClient, authentication, read_json
from mm_core.labeling.label_studio_types import (
    Account,
    NewTask,
    ProjectSummary,
    Task,
    TaskFilter,
    TaskPage,
    Upload,
)

if TYPE_CHECKING:
    import label_studio_sdk
    import label_studio_sdk.core.api_error
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.types import LseTask
else:
    label_studio_sdk = Deferred("label_studio_sdk")

PAGE = 200
"""Tasks per page of a listing."""
LOOKED_UP = 50
"""Keys per look-up; they are part of the address."""


class Server:
    """One project on one server, found by its title or created. Raises LabelServerError with a remedy."""

    def __init__(self, url: str, key: str, title: str, *, people: int = 1, page: str = "") -> None:
        """Create a client.

        Args:
            url: Address for requests.
            key: Legacy or personal access token.
            title: Title of the project.
            people: Number of people who label each photo of a new project.
            page: Address under which people open the server, for links; empty: `url`.
        """
        self.url, self.title, self._people = url.rstrip("/"), title, people
        self._page = page or self.url
        self._http = PatientClient(self.url, authentication(self.url, key))

        def sdk() -> LabelStudio:
            try:
                return label_studio_sdk.LabelStudio(
                    base_url=self.url, api_key=key, httpx_client=PatientClient(self.url)
                )
            except label_studio_sdk.core.api_error.ApiError:
                # The SDK reads the date of a personal access token before it sends a request.
                expired = f"the key for Label Studio at {self.url} has expired: check LABEL_STUDIO_API_KEY"
                raise LabelServerError(expired) from None

        self._open_sdk = sdk  # a closure keeps the key out of every repr

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ── the project ──────────────────────────────────────────────────────────────────────────────

    @cached_property
    def project(self) -> int:
        """Number of the project; it is created with its label config if no project has this title."""
        projects, matches = self.sdk.projects, []
        page = projects.list(title=self.title, page_size=100)
        while page is not None:
            # The server's filter also returns titles that contain this one.
            matches += [(int(p.id or 0), p.label_config or "") for p in page.items or () if p.title == self.title]
            page = page.next_page() if page.response.next else None
        if not matches:
            # The number of people per photo is a setting of a new project.
            made = projects.create(
                title=self.title,
                label_config=LABEL_CONFIG,
                maximum_annotations=self._people,
                show_collab_predictions=True,
            )
            return int(made.id or 0)
        # If two processes created it at the same time, both continue with the older one.
        number, present = min(matches)
        if controls(present) != controls(LABEL_CONFIG):
            projects.update(number, label_config=LABEL_CONFIG)
        elif headers(present) != headers(LABEL_CONFIG):
            # Another layout changes no answer. Tasks that others imported may lack the reason that it shows.
            with suppress(LabelServerError):
                projects.update(number, label_config=LABEL_CONFIG)
        return number

    def link(self, task: int | None = None) -> str:
        """Return the address of the project's page, or of a task's."""
        page = f"{self._page}/projects/{self.project}/data"
        return page if task is None else f"{page}?task={task}"

    def summary(self) -> ProjectSummary:
        """Return counts of tasks and the age of the oldest untouched task."""
        info = self.sdk.projects.get(self.project)
        # Untouched: neither annotated nor skipped.
        untouched = [_filter("total_annotations", "equal", "Number", 0)]
        untouched += [_filter("cancelled_annotations", "equal", "Number", 0)]
        waiting = self._tasks(untouched, order="tasks:created_at", size=1)
        skipped = self._tasks([_filter("cancelled_annotations", "greater", "Number", 0)], size=1)
        total, finished = info.task_number or 0, info.finished_task_number or 0
        return {
            "tasks": total,
            "finished": finished,
            "skipped": int(skipped["total"]),
            "open": total - finished,
            "oldest_open_days": _days_since(waiting["tasks"][0]["created_at"]) if waiting["tasks"] else None,
        }

    # ── sending ──────────────────────────────────────────────────────────────────────────────────

    def tasks_of(self, keys: Iterable[str]) -> dict[str, list[Task]]:
        """Return the tasks with these keys (`data.key`), oldest first; keys without a task are left out."""
        by_key: dict[str, list[Task]] = {}
        todo = list(dict.fromkeys(keys))
        for start in range(0, len(todo), LOOKED_UP):
            chunk = todo[start : start + LOOKED_UP]
            wanted = [_filter("data.key", "equal", "String", key) for key in chunk]
            for task in self._listed(wanted, "or"):
                # Keep exact matches only.
                if (key := task["data"].get("key")) in chunk:
                    by_key.setdefault(key, []).append(task)
        return {key: sorted(tasks, key=lambda task: task["id"]) for key, tasks in by_key.items()}

    def uploads(self, numbers: Sequence[int] | None = None) -> dict[str, list[Upload]]:
        """Return uploaded files by the name they were sent under.

        Args:
            numbers: Numbers of the uploads; by default all.

        Returns:
            Name → uploads, oldest first.
        """
        by_name: dict[str, list[Upload]] = {}
        which = {"all": "true"} if numbers is None else {"ids": json.dumps(list(numbers))}
        listed = self._call("GET", f"/api/projects/{self.project}/file-uploads", params=which)
        for upload in sorted(listed, key=lambda upload: upload["id"]):
            # The server stores a file as <random>-<name>.
            name = upload["file"].rsplit("/", 1)[-1].split("-", 1)[-1]
            by_name.setdefault(name, []).append({"id": upload["id"], "url": f"/data/{upload['file']}"})
        return by_name

    def upload(self, pictures: Mapping[str, bytes]) -> dict[str, list[Upload]]:
        """Send JPEG files by name; return them as `uploads` does. After an outage some files may exist twice."""
        files = [(f"file{n}", (name, data, "image/jpeg")) for n, (name, data) in enumerate(pictures.items())]
        answer = self._call("POST", self._import, params={"commit_to_project": "false"}, files=files)
        return self.uploads(answer["file_upload_ids"])

    def import_tasks(self, tasks: Sequence[NewTask]) -> None:
        """Import all tasks or none. The request is not repeated: after an outage, check first which tasks exist."""
        # The label config shows the reason, and the server refuses tasks that lack what the config refers to.
        tasks = [{**task, "data": {WHY: "", **task["data"]}} for task in tasks]
        data = json.dumps(tasks, separators=(",", ":")).encode()
        self._call("POST", self._import, content=data, headers={"Content-Type": "application/json"})

    def remove_uploads(self, numbers: Sequence[int]) -> None:
        """Delete uploads by number."""
        # Without a list the server would delete all uploads.
        if numbers:
            body = {"file_upload_ids": list(numbers)}
            self._call("DELETE", f"/api/projects/{self.project}/file-uploads", json=body)

    def remove_task(self, number: int) -> None:
        """Delete a task with its annotations."""
        self.sdk.tasks.delete(str(number))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def newest_change(self) -> str | None:
        """Return the time of the last change of a task by the server's clock; None without tasks."""
        tasks = self._tasks([], order="-tasks:updated_at", size=1)["tasks"]
        return tasks[0]["updated_at"] if tasks else None

    def changed_since(self, since: str | None) -> Iterator[Task]:
        """Yield tasks that changed after `since` (None: all), by number, without their annotations."""
        yield from self._listed([_filter("updated_at", "greater", "Datetime", since)] if since else [], "and")

    def annotations(self, task: int) -> list[object]:
        """Return a task's stored annotations without skips, with the annotators' e-mail addresses if known."""
        return [
            # The SDK checks no values: what it cannot read stays as the server sent it.
            {
                **dict(stored),
                "completed_by": self._names.get(stored.completed_by or 0, stored.completed_by),
                **{name: _text(when) for name, when in stored if name in ("created_at", "updated_at")},
            }
            for stored in self.sdk.annotations.list(id=task)
        ]

    def ask_again(self, task: Task, people: int, why: str) -> None:
        """Put a task back into the queue of people who have not answered it, until `people` have answered."""
        data = {**task["data"], "disagreement": why}
        self.sdk.tasks.update(str(task["id"]), overlap=people, is_labeled=False, data=data)

    # ── people and hooks ─────────────────────────────────────────────────────────────────────────

    @cached_property
    def sdk(self) -> LabelStudio:
        """Return the SDK's client with the same key; it takes seconds to import, so it is opened on first use."""
        return self._open_sdk()

    def hook(self, address: str, headers: Mapping[str, str]) -> None:
        """Make the server call `address` when work is submitted or changed; replaces an earlier hook to it.

        By default a server refuses addresses of its own machine or network.
        """
        # Delete an earlier hook to the same address.
        for hook in self.sdk.webhooks.list(project=str(self.project)):
            if hook.url == address and hook.id:
                self.sdk.webhooks.delete(hook.id)
        try:
            self.sdk.webhooks.create(
                url=address,
                headers=dict(headers),
                project=self.project,
                actions=["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"],
                send_payload=False,
                send_for_all_actions=False,
                is_active=True,
            )
        except LabelServerError as error:
            remedy = "`mm label serve --local-hooks` allows addresses of this machine, SSRF_PROTECTION_ENABLED=false in"
            raise LabelServerError(f"{error}; {remedy} another server's environment those of its network") from None

    @cached_property
    def _names(self) -> dict[int, Account]:
        return {user.id: {"id": user.id, "email": user.email} for user in self.sdk.users.list() if user.id}

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    @property
    def _import(self) -> str:
        return f"/api/projects/{self.project}/import"

    def _tasks(
        self, wanted: Sequence[TaskFilter], conjunction: str = "and", *, order: str = "tasks:id", size: int = PAGE
    ) -> TaskPage:
        query = {"filters": {"conjunction": conjunction, "items": list(wanted)}, "ordering": [order]}
        page = self.sdk.tasks.list(
            project=self.project, page=1, page_size=size, query=json.dumps(query), fields="task_only"
        )
        return {"tasks": [_task(cast("LseTask", task)) for task in page.items or ()], "total": int(page.response.total)}

    def _listed(self, wanted: Sequence[TaskFilter], conjunction: str) -> Iterator[Task]:
        """Yield every task that passes the filters.

        Each page starts after the last number, so tasks that are added or removed meanwhile cause no gaps.
        """
        last = 0
        while True:
            # The server's filters cannot be nested, so an "or" must fit on one page.
            behind = [_filter("id", "greater", "Number", last)] if conjunction == "and" else []
            size = PAGE if conjunction == "and" else 10 * PAGE
            tasks = self._tasks([*wanted, *behind], conjunction, size=size)["tasks"]
            yield from tasks
            if conjunction == "or" or len(tasks) < size:
                return
            last = tasks[-1]["id"]

    def _call(self, method: str, path: str, **request: Any) -> Any:
        """Send a bulk request and return the response's JSON."""
        return read_json(self._http.request(method, path, **request))


def _task(task: LseTask) -> Task:
    """Return the SDK's task as a typed dict; times are text in the server's form, in which they sort."""
    return {
        "id": int(task.id or 0),
        "data": task.data,
        "created_at": _moment(task.created_at),
        "updated_at": _moment(task.updated_at),
        "total_annotations": task.total_annotations or 0,
        "cancelled_annotations": task.cancelled_annotations or 0,
        "overlap": task.overlap or 1,
        "is_labeled": bool(task.is_labeled),
        "drafts": list(task.drafts or ()),
    }


def _text(when: object) -> object:
    return _moment(when) if isinstance(when, datetime) else when


def _moment(when: datetime | None) -> str:
    """Return a time of the server as text, with microseconds and in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if when else ""


def _days_since(moment: str) -> float:
    return round((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() / 86400, 3)


def controls(config: str) -> list[tuple[str, str | None, str | None, tuple[str, ...]]] | None:
    """Return the parts of a label config that answers depend on: names, targets and values; None without a config."""
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return None
    return sorted(
        (node.tag, node.get("name"), node.get("toName") or node.get("value"), tuple(c.get("value") or "" for c in node))
        for node in root.iter()
        if node.get("name")
    )


def headers(config: str) -> list[str]:
    """Return the texts of a label config's headers in order, from which a changed layout is told."""
    return [node.get("value") or "" for node in ElementTree.fromstring(config).iter("Header")]


def _filter(field: str, operator: str, kind: str, value: str | int | None) -> TaskFilter:
    return {"filter": f"filter:tasks:{field}", "operator": operator, "type": kind, "value": value}
