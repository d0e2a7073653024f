"""The MLflow model registry `matting`: promoted versions, their provenance, and the present champion.

The alias `champion` alone decides which model serves. The history (tags `history.0001`, … of the registered model)
follows the alias. Moves of the anchor by a person are recorded in `anchor.0001`, …. A move is announced in the tag
`pending`, then made, then recorded; after a kill, the next process detects from it whether the move happened. A version
is created in one transaction with all its tags, after all blobs and artifacts that they name.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError, ReleaseRefused, TrackingServerError
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.locks import exclusive
from mm_core.core.pins import ModelPin
from mm_core.core.records import Report, Verdict
from mm_core.core.settings import Settings
from mm_core.eval.ratchet import Ratchet
from mm_core.export.alias_database import UnknownDatabase, read_pin
from mm_core.export.bundle import exported_bundle
from mm_core.export.bundle_manifest import checked_manifest
from mm_core.export.mlflow_model import save_mlflow_model
from mm_core.export.provenance import gather
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, put_blob
from mm_core.training.mlflow_client import expect_quick_answer, open_client, require_database
from mm_core.training.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient, exceptions
    from mlflow.entities.model_registry import RegisteredModel

    from mm_core.export.override import Override
else:
    exceptions = Deferred("mlflow.exceptions")

Found = TypeVar("Found")
NAME = "matting"
PROMOTE, ROLLBACK, OVERRIDE, ANCHOR = "promote", "rollback", "override", "anchor"
"""Kinds of moves in the registry's history."""


# `from` is a keyword, so the fields cannot be written as a class.
Move = TypedDict(
    "Move",
    {
        "n": int,
        "kind": str,  # promote, rollback, override, anchor, or unknown for a move by hand
        "from": str | None,  # version
        "to": str,
        "who": str,
        "when": str | None,  # ISO 8601, UTC; None if unknown
        "why": str,
    },
)
"""One move of an alias."""


class Registry:
    """Read and move the registry at `settings.mlflow_uri` (by default sqlite in the workspace, or a server)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client_or_none: MlflowClient | None = None

    def find_champion(self) -> tuple[str | None, str | None]:
        """Return the champion's version, None without one; and why the registry cannot tell it, None if it can."""
        expect_quick_answer()
        try:
            return (self.pin("champion") or {}).get("version"), None
        except TrackingServerError as error:
            return None, f"unknown, because {error}"

    def pin(self, name: str) -> ModelPin | None:
        """Return the pin of an alias or version number; None for a missing version."""
        if database := self._database:
            if not database.is_file():
                return None
            with suppress(UnknownDatabase):
                return read_pin(database, NAME, name)
        tags = self.tags(name)
        if tags is None:
            return None
        return {"version": tags["version"], "digest": tags["model_digest"], "files": json.loads(tags["files"])}

    def tags(self, name: str) -> dict[str, str] | None:
        """Return all tags of an alias or version number with `version` and `aliases` (JSON list), or None."""
        model = self._model()
        number = name if name.isdecimal() else model and model.aliases.get(name)
        if model is None or not number:
            return None
        version = _or_none(lambda: self._client.get_model_version(NAME, str(number)))
        if version is None or "model_digest" not in version.tags:
            return None
        # MLflow returns version numbers as text or int, depending on the backend.
        held_by = sorted(alias for alias, at in model.aliases.items() if str(at) == str(version.version))
        return {**version.tags, "version": str(version.version), "aliases": json.dumps(held_by)}

    def versions(self) -> list[str]:
        """Return every registered version, oldest first."""
        if self._model() is None:
            return []
        return sorted((str(v.version) for v in self._client.search_model_versions(f"name = '{NAME}'")), key=int)

    def describe_versions(self) -> str:
        """Return which versions there are, for the message about a name that is none of them."""
        if versions := self.versions():
            return f"the registry has {', '.join(versions)}"
        return "the registry is empty; `mm run` registers a model that the gate promotes"

    def history(self) -> list[Move]:
        """Return every move of `champion`, oldest first."""
        model = self._model()
        return _history(model) if model else []

    def promote(self, run: StorageRun, verdict: Verdict, report: Report, *, override: Override | None = None) -> Report:
        """Register the exported candidate of a PROMOTE verdict (or of an `override`) and make it champion.

        A repeated call changes nothing. After a kill at any point, the next call completes the promotion.

        Raises:
            InputError: The candidate has not been exported.
            ReleaseRefused: Another model became champion after the verdict, or the candidate was rolled back and no
                later `override` reverses that.
        """
        bundle = exported_bundle(run.layout, verdict)
        with exclusive(self._lock):
            if self._model() is None:
                self._client.create_registered_model(
                    NAME, description="Alpha mattes on phones: encoder, three decoders."
                )
            before = self.pin("champion")
            # The verdict compares with one champion; it is void for another one.
            if before and before["digest"] not in (verdict.champion, verdict.candidate):
                raise ReleaseRefused(
                    f"version {before['version']} became champion after the verdict, which compares with "
                    f"{(verdict.champion or 'none')[:12]}: run another cycle (`mm run`)"
                )
            registered = self._version_of(verdict.candidate)
            # The model may be registered already: by a killed call, or as a former champion.
            if registered and (not before or before["digest"] != verdict.candidate):
                self._refuse_rolled_back(registered, override)
            version = registered or self._register(run, verdict, bundle)
            Tracker(self._settings).link_version(verdict.candidate, NAME, version)
            self._point("candidate", version)
            # The aliases move last, when the version is complete.
            if not before or before["digest"] != verdict.candidate:
                why = f"gate: {verdict.decision} ({verdict.basis}); " + "; ".join(verdict.reasons[:3])
                self._crown(version, said(override) if override else why, OVERRIDE if override else PROMOTE)
            self._settle()
            self._point_if_absent("anchor", self.history()[0]["to"])
        moves = self.history()
        report.facts |= {"version": version, "digest": verdict.candidate, "bundle": str(bundle), "move": moves[-1]}
        report.metrics["promote/version"] = float(version)
        report.tables["history"] = moves
        return report

    def rollback(self, version: str | None, why: str, report: Report) -> Report:
        """Make an earlier champion champion again: `version`, or the one before the present one.

        A repeated call with a version changes nothing. Raises InputError if no such earlier champion exists.
        """
        if self._model() is None:
            raise InputError("no model was ever promoted: there is nothing to roll back")
        with exclusive(self._lock):
            self._settle()
            moves, reign = self.history(), self.champions()
            if version is None:
                # Without a version: the champion before the present one, rolled-back ones left out.
                if len(reign) < 2:
                    raise InputError(f"version {reign[-1]} is the only champion there ever was: nothing to go back to")
                version = reign[-2]
            if version not in [move["to"] for move in moves]:
                promoted = ", ".join(dict.fromkeys(move["to"] for move in moves))
                raise InputError(f"version {version} was never champion; promoted were {promoted}")
            if moves[-1]["to"] != version:
                self._crown(version, why, ROLLBACK)
        report.facts |= {"version": version, "move": self.history()[-1]}
        report.metrics["promote/version"] = float(version)
        report.tables["history"] = self.history()
        return report

    def crown(self, version: str, override: Override, report: Report) -> Report:
        """Make a registered version champion by a person's override; a repeated call changes nothing."""
        tags = self.tags(version)
        if tags is None:
            raise InputError(f"{NAME} has no version {version!r}: see `mm status` or the registry's page")
        with exclusive(self._lock):
            self._settle()
            moves = self.history()
            if not moves or moves[-1]["to"] != tags["version"]:
                self._crown(tags["version"], said(override), OVERRIDE)
        report.facts |= {"version": tags["version"], "digest": tags["model_digest"], "move": self.history()[-1]}
        report.tables["history"] = self.history()
        return report

    def move_anchor(self, version: str, why: str, report: Report) -> Report:
        """Make a present or former champion the anchor that later candidates must not fall behind.

        Person, time and reason are recorded before the alias moves. A repeated call changes nothing. Raises InputError
        if `version` was never champion or the reason is empty.
        """
        if not why.strip():
            raise InputError(
                "mm anchor needs --reason: the anchor guards against slow decline, so each move is kept with a reason"
            )
        # Only a model that served may become the anchor.
        champions = list(dict.fromkeys(move["to"] for move in self.history()))
        if version not in champions:
            raise InputError(f"version {version} was never champion; promoted were {', '.join(champions) or 'none'}")
        with exclusive(self._lock):
            moves, model = self.anchor_history(), self._model()
            before = model.aliases.get("anchor") if model else None
            if str(before) != version:
                # A move announced by a killed process is not recorded twice.
                if not moves or (moves[-1]["from"], moves[-1]["to"]) != (str(before), version):
                    entry = _move(len(moves) + 1, ANCHOR, str(before), version, why.strip())
                    self._client.set_registered_model_tag(NAME, f"anchor.{entry['n']:04d}", json.dumps(entry))
                self._point("anchor", version)
        report.facts |= {"anchor": version, "moves": self.anchor_history()}
        return report

    def anchor_history(self) -> list[Move]:
        """Return every move of `anchor` by a person, oldest first, in the form of `history`."""
        model = self._model()
        return _recorded(model, "anchor") if model else []

    def champions(self) -> list[str]:
        """Return the line of champions up to the present one; a rollback removes those after its target."""
        # Replay the history: a rollback to a former champion shortens the line.
        reign: list[str] = []
        for move in self.history():
            if move.get("kind") == ROLLBACK and move["to"] in reign:
                del reign[reign.index(move["to"]) + 1 :]
            else:
                reign.append(move["to"])
        return reign

    def ratchet(self, store: Store, anchor: ModelPin | None) -> Ratchet:
        """Return the record of the best models so far of an anchor (`pin`), without those that were rolled back."""
        fallen = {move["to"] for move in self.history()} - set(self.champions())
        digests = {tags["model_digest"] for version in fallen if (tags := self.tags(version))}
        return Ratchet(store, anchor["digest"] if anchor else None, digests)

    def _refuse_rolled_back(self, version: str, override: Override | None) -> None:
        # Only an override given after the last rollback reverses it.
        fallen = [m for m in self.history() if m.get("kind") == ROLLBACK and m["from"] == version]
        if fallen and (override is None or override["when"] < (fallen[-1]["when"] or "")):
            raise ReleaseRefused(
                f"version {version} was rolled back on {fallen[-1]['when']} ({fallen[-1]['why']}): "
                f"train another candidate, or `mm promote {version} --override REASON`"
            )

    @property
    def _lock(self) -> Path:
        return self._settings.workspace / "mlflow" / ".promote.lock"

    def _register(self, run: StorageRun, verdict: Verdict, bundle: Path) -> str:
        """Store blobs, then artifacts, then create the version with all tags in one transaction; return its number."""
        manifest = checked_manifest(bundle)
        # Every file is verified before it becomes a part of the registry.
        weights = put_blob(run.store, run.layout.model(TRAIN_STAGES[-1]))
        if weights != verdict.candidate:
            raise ReleaseRefused(f"the candidate is {weights[:12]} now, the verdict is about {verdict.candidate[:12]}")
        files = {row["file"]: put_blob(run.store, bundle / row["file"]) for row in manifest["decoders"].values()}
        provenance = gather(run, verdict)
        # The scores that the gate compared; several cells can be about the same one.
        scores = {f"{cell.category}/{cell.metric}": cell.candidate for cell in verdict.cells}
        save = partial(save_mlflow_model, bundle, run.layout.model(TRAIN_STAGES[-1]))
        logged = Tracker(self._settings).log_model(run.layout, verdict.candidate, scores, save)
        tags = {
            "model_digest": verdict.candidate,
            "files": json.dumps(files, sort_keys=True),
            "snapshot": verdict.snapshot,
            "eval_digest": verdict.eval_digest,
            "verdict": verdict.decision,
            "verdict_basis": verdict.basis,
            "code_revision": provenance["code_revision"],
            "bundle": bundle.name,
            "provenance": put_blob(run.store, json.dumps(provenance, sort_keys=True).encode()),
        }
        made = self._client.create_model_version(
            NAME,
            source=logged.artifact_location,
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            tags=tags,
            description=(bundle / "MODEL_CARD.md").read_text(),
            await_creation_for=0,
        )
        # If two machines register one model concurrently, the lower number counts.
        return self._version_of(verdict.candidate) or str(made.version)

    def _crown(self, version: str, why: str, kind: str) -> None:
        """Announce, make and record a move of `champion`; the announcement survives a killed process."""
        self._settle()
        moves = self.history()
        entry = _move(len(moves) + 1, kind, moves[-1]["to"] if moves else None, version, why)
        self._client.set_registered_model_tag(NAME, "pending", json.dumps(entry))
        self._point("champion", version)
        self._settle()

    def _settle(self) -> None:
        """Record moves that happened but are missing in the tags."""
        model = self._model()
        if model is None:
            return
        for entry in _history(model):
            key = f"history.{entry['n']:04d}"
            if key not in model.tags:
                self._client.set_registered_model_tag(NAME, key, json.dumps(entry))

    def _point(self, alias: str, version: str) -> None:
        model = self._model()
        if model is None or str(model.aliases.get(alias)) != version:
            self._client.set_registered_model_alias(NAME, alias, version)

    def _point_if_absent(self, alias: str, version: str) -> None:
        model = self._model()
        if model is None or alias not in model.aliases:
            self._client.set_registered_model_alias(NAME, alias, version)

    def _version_of(self, digest: str) -> str | None:
        matches = self._client.search_model_versions(f"name = '{NAME}' and tags.`model_digest` = '{digest}'")
        return str(min(int(version.version) for version in matches)) if matches else None

    def _model(self) -> RegisteredModel | None:
        """Return the registered model with aliases and tags, or None; creates no database if none exists."""
        if self._database and not self._database.is_file():
            return None
        return _or_none(lambda: self._client.get_registered_model(NAME))

    @property
    def _database(self) -> Path | None:
        """The sqlite database; None for a server."""
        return require_database(self._settings)

    @property
    def _client(self) -> MlflowClient:
        if self._client_or_none is None:
            self._client_or_none = open_client(self._settings)
        return self._client_or_none


def _history(model: RegisteredModel) -> list[Move]:
    """Return the recorded moves, and the last one if the alias moved without a record."""
    moves = _recorded(model, "history")
    champion, last = model.aliases.get("champion"), moves[-1]["to"] if moves else None
    if champion is not None and str(champion) != last:
        # The announced move happened if the alias has its target.
        announced = json.loads(model.tags.get("pending", "{}"))
        if announced.get("to") == str(champion) and announced.get("n") == len(moves) + 1:
            moves.append(announced)
        else:
            moves.append(
                {
                    "n": len(moves) + 1,
                    "kind": "unknown",
                    "from": last,
                    "to": str(champion),
                    "who": "unknown",
                    "when": None,
                    "why": "the alias was moved outside of mm",
                }
            )
    return moves


def _recorded(model: RegisteredModel, what: str) -> list[Move]:
    return [json.loads(value) for key, value in sorted(model.tags.items()) if key.startswith(f"{what}.")]


def _move(n: int, kind: str, before: str | None, to: str, why: str) -> Move:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"n": n, "kind": kind, "from": before, "to": to, "who": who(), "when": when, "why": why}


def said(override: Override) -> str:
    """Return an override as text for the history."""
    return f"override until {override['expires']} of {override['decision']}: {override['reason']}"


def who() -> str:
    """Return the login name of the promoting person."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _or_none(call: Callable[[], Found]) -> Found | None:
    """Return the call's result; None if the registry has no such entry."""
    try:
        return call()
    except exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
