"""Client of a Label Studio server over HTTP; no other module connects to one.

Bulk data are sent as plain JSON through httpx; a person's actions use the SDK's client. The SDK traverses every number
of a run-length code before it sends it (twelve times the work of `json.dumps`), takes seconds to import, and has no
call for several uploads or for the list of uploads. Properties of the server (1.23) that shape this module:

- it accepts the same task twice without an error;
- `filter:tasks:updated_at` covers new, edited, skipped and deleted annotations;
- an import is one transaction;
- uploads that no task refers to are never deleted;
- a request to delete uploads without a list deletes all of them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import httpx

from mm_core.core.deferred import Deferred
from mm_core.core.errors import LabelServerError
from mm_core.labeling.label_studio_format import LABEL_CONFIG, WHY
from mm_core.labeling.label_studio_types import (
    Account,
    NewTask,
    Prediction,
    Project,
    ProjectSummary,
    Region,
    Task,
    TaskFilter,
    TaskPage,
    Upload,
)

if TYPE_CHECKING:
    import httpx
    import label_studio_sdk
    from label_studio_sdk import LabelStudio
else:
    label_studio_sdk = Deferred("label_studio_sdk")

TIMEOUT = 120.0
"""Seconds without a response after which a request fails."""
TRIES = 5
"""Attempts of a repeatable request, with growing pauses, before its error is raised."""
PAGE = 200
"""Tasks per page of a listing."""
LOOKED_UP = 50
"""Keys per look-up; they are part of the address."""


class Server:
    """One project on one server, found by its title or created. Raises LabelServerError with a remedy."""

    def __init__(self, url: str, key: str, title: str, *, people: int = 1) -> None:
        """Create a client; `key` is a legacy or personal access token, `people` label each photo of a new project."""
        self.url, self.title, self._people = url.rstrip("/"), title, people
        self._http = self._plain(base_url=self.url, auth=cast("httpx.Auth", _auth(self.url, key)))

        def sdk() -> LabelStudio:
            return label_studio_sdk.LabelStudio(base_url=self.url, api_key=key, httpx_client=self._plain())

        self._open_sdk = sdk  # a closure keeps the key out of every repr

    def _plain(self, **more: Any) -> httpx.Client:
        """Return an HTTP client for the server."""
        # A proxy of the environment must not be used for a server on this machine.
        network = not self.url.startswith(("http://127.0.0.1", "http://localhost"))
        return httpx.Client(timeout=TIMEOUT, follow_redirects=True, trust_env=network, **more)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ── the project ──────────────────────────────────────────────────────────────────────────────

    @cached_property
    def project(self) -> int:
        """Number of the project; it is created with its label config if no project has this title."""
        matches = [p for p in self._pages("/api/projects", "results") if p.get("title") == self.title]
        if not matches:
            # The number of people per photo is a setting of a new project.
            settings = {"maximum_annotations": self._people, "show_collab_predictions": True}
            body = {"title": self.title, "label_config": LABEL_CONFIG, **settings}
            return int(self._call("POST", "/api/projects", json=body)["id"])
        # If two processes created it at the same time, both continue with the older one.
        project = min(matches, key=lambda p: p["id"])
        present, change = project.get("label_config", ""), {"label_config": LABEL_CONFIG}
        if controls(present) != controls(LABEL_CONFIG):
            self._call("PATCH", f"/api/projects/{project['id']}", json=change)
        elif headers(present) != headers(LABEL_CONFIG):
            # Another layout changes no answer. Tasks that others imported may lack the reason that it shows.
            with suppress(LabelServerError):
                self._call("PATCH", f"/api/projects/{project['id']}", json=change)
        return int(project["id"])

    def link(self, task: int | None = None) -> str:
        """Return the address of the project's page, or of a task's."""
        page = f"{self.url}/projects/{self.project}/data"
        return page if task is None else f"{page}?task={task}"

    def summary(self) -> ProjectSummary:
        """Return counts of tasks and the age of the oldest untouched task."""
        info = self._call("GET", f"/api/projects/{self.project}")
        # Untouched: neither annotated nor skipped.
        untouched = [_filter("total_annotations", "equal", "Number", 0)]
        untouched += [_filter("cancelled_annotations", "equal", "Number", 0)]
        waiting = self._tasks(untouched, order="tasks:created_at", size=1)
        skipped = self._tasks([_filter("cancelled_annotations", "greater", "Number", 0)], size=1)
        total, finished = int(info["task_number"]), int(info["finished_task_number"])
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
        self._call("DELETE", f"/api/tasks/{number}/")

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
        stored = self._call("GET", f"/api/tasks/{task}/annotations/")
        for annotation in stored if isinstance(stored, list) else []:
            if isinstance(annotation, dict):
                who = annotation.get("completed_by")
                annotation["completed_by"] = self._names.get(who, who) if isinstance(who, int) else who
        return stored if isinstance(stored, list) else []

    def predictions(self, task: int) -> list[Prediction]:
        """Return a task's predictions."""
        return self._call("GET", "/api/predictions/", params={"task": task})

    def ask_again(self, task: Task, people: int, why: str) -> None:
        """Put a task back into the queue of people who have not answered it, until `people` have answered."""
        data = {**task["data"], "disagreement": why}
        self._call("PATCH", f"/api/tasks/{task['id']}/", json={"overlap": people, "is_labeled": False, "data": data})

    # ── people and hooks ─────────────────────────────────────────────────────────────────────────

    @cached_property
    def sdk(self) -> LabelStudio:
        """Return the SDK's client with the same key, for a person's actions: few and small requests."""
        return self._open_sdk()

    def annotate(self, task: int, result: Sequence[Region], **more: Any) -> int:
        """Submit an annotation as the key's owner; return its number. `more`: was_cancelled, lead_time."""
        made = self.sdk.annotations.create(id=task, result=[dict(region) for region in result], **more)
        return int(made.id or 0)

    def edit(self, annotation: int, result: Sequence[Region]) -> None:
        """Replace the regions of an annotation."""
        self.sdk.annotations.update(id=annotation, result=[dict(region) for region in result])

    def remove_annotation(self, annotation: int) -> None:
        """Delete an annotation."""
        self.sdk.annotations.delete(id=annotation)

    def hook(self, address: str, headers: Mapping[str, str]) -> None:
        """Make the server call `address` when work is submitted or changed; replaces an earlier hook to it.

        By default a server refuses addresses of its own machine or network.
        """
        actions = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"]
        body = {"url": address, "headers": dict(headers), "project": self.project, "actions": actions}
        body |= {"send_payload": False, "send_for_all_actions": False, "is_active": True}
        # Delete an earlier hook to the same address.
        for hook in self._call("GET", "/api/webhooks/", params={"project": self.project}):
            if hook["url"] == address:
                self._call("DELETE", f"/api/webhooks/{hook['id']}/")
        try:
            self._call("POST", "/api/webhooks/", json=body)
        except LabelServerError as error:
            remedy = "`mm label serve --local-hooks` allows addresses of this machine, SSRF_PROTECTION_ENABLED=false in"
            raise LabelServerError(f"{error}; {remedy} another server's environment those of its network") from None

    def add_account(self, email: str, password: str) -> str:
        """Create an account by the organisation's invitation, as a person would; return its token."""
        invitation = self._call("GET", "/api/invite")["invite_url"]
        with httpx.Client(base_url=self.url, timeout=TIMEOUT, follow_redirects=True) as browser:
            # The sign-up form needs the CSRF token of its page.
            page = browser.get(invitation)
            secret = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
            form = {"csrfmiddlewaretoken": secret.group(1) if secret else "", "email": email, "password": password}
            browser.post(str(page.url), data=form, headers={"Referer": str(page.url)})
            answer = browser.get("/api/current-user/token")
            if not answer.is_success:
                raise LabelServerError(f"Label Studio at {self.url} created no account {email!r}: it may exist already")
            # The cached list of names lacks the new account.
            self.__dict__.pop("_names", None)
            return str(answer.json()["token"])

    @cached_property
    def _names(self) -> dict[int, Account]:
        users = self._call("GET", "/api/users/")
        return {user["id"]: {"id": user["id"], "email": user.get("email")} for user in users}

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    @property
    def _import(self) -> str:
        return f"/api/projects/{self.project}/import"

    def _tasks(
        self, wanted: Sequence[TaskFilter], conjunction: str = "and", *, order: str = "tasks:id", size: int = PAGE
    ) -> TaskPage:
        query = {"filters": {"conjunction": conjunction, "items": list(wanted)}, "ordering": [order]}
        params = {"project": self.project, "page_size": size, "query": json.dumps(query), "fields": "task_only"}
        return self._call("GET", "/api/tasks/", params=params)

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

    def _pages(self, path: str, name: str) -> Iterator[Project]:
        """Yield the entries of a paged listing."""
        page = 1
        while True:
            answer = self._call("GET", path, params={"page": page, "page_size": 100})
            yield from answer[name]
            if not answer.get("next"):
                return
            page += 1

    def _call(self, method: str, path: str, **request: Any) -> Any:
        """Send a request and return the response's JSON; repeat repeatable requests through outages of seconds."""
        # Repeat with growing pauses while the fault may pass by itself and a repetition does no harm.
        fault: Exception = LabelServerError("")
        for attempt in range(TRIES):
            patient = attempt + 1 < TRIES
            try:
                response = self._http.request(method, path, **request)
            except httpx.ConnectError as error:
                fault = error  # no data were sent, so any method may be repeated
            except httpx.TransportError as error:
                # A POST may have been executed before the connection failed.
                fault, patient = error, patient and method != "POST"
            else:
                # Already deleted, for example by an earlier attempt.
                if method == "DELETE" and response.status_code == 404:
                    return None
                if response.is_success:
                    return _json(response)
                fault = LabelServerError(_refusal(self.url, method, path, response))
                patient = patient and method != "POST" and response.status_code in (429, 500, 502, 503, 504)
            if not patient:
                break
            time.sleep(0.5 * 2**attempt)
        if isinstance(fault, LabelServerError):
            raise fault
        reason = f"{type(fault).__name__} at {method} {path}: is it running, is LABEL_STUDIO_URL right?"
        raise LabelServerError(f"Label Studio at {self.url} does not answer ({reason})") from fault


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


def _json(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except (ValueError, RecursionError):
        text = f"{response.request.url.path} responded with {response.headers.get('content-type', 'something')}"
        raise LabelServerError(f"{text}, not JSON: is LABEL_STUDIO_URL the address of a Label Studio?") from None


def _refusal(url: str, method: str, path: str, response: httpx.Response) -> str:
    """Return the error message for a refused request."""
    code = response.status_code
    if code in (401, 403):
        return f"Label Studio at {url} refuses the key (HTTP {code}): check LABEL_STUDIO_API_KEY"
    detail = " ".join(response.text.split())[:200]
    return f"Label Studio at {url} refuses {method} {path} (HTTP {code}): {detail}"


def _auth(url: str, key: str) -> object:
    """Return the authentication for either kind of key; a personal access token is a JWT that is valid for 300 s."""

    class Auth(httpx.Auth):
        requires_response_body = True

        def __init__(self) -> None:
            self._access, self._until = "", 0.0

        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            # A JWT has two dots; a legacy token has none.
            if key.count(".") != 2:
                request.headers["Authorization"] = f"Token {key}"
                yield request
                return
            # Exchange the token for a new access token before the old one expires.
            if time.monotonic() > self._until:
                answer = yield httpx.Request("POST", f"{url}/api/token/refresh/", json={"refresh": key})
                if not answer.is_success:
                    # Send the request without a key: its refusal becomes the error message.
                    yield request
                    return
                self._access, self._until = answer.json()["access"], time.monotonic() + 240
            request.headers["Authorization"] = f"Bearer {self._access}"
            yield request

        def __repr__(self) -> str:
            return "Auth(…)"

    return Auth()
