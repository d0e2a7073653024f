"""The MLflow model registry `matting`: what was promoted, from what, and which version is champion now.

The alias `champion` is the one truth about which model serves; the history (tags `history.0001`, … of the registered
model) follows it. A move is announced in the tag `pending`, then made, then written down, so that whoever comes after a
killed promoter knows whether the move happened. A version is created in one transaction with all its tags, after every
blob and artifact that they name.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mm_core.errors import ReleaseRefused
from mm_core.export.bundle import exported_bundle, read_manifest
from mm_core.export.lock import held
from mm_core.export.provenance import gather
from mm_core.layout import TRAIN_STAGES, Layout
from mm_core.params import Params
from mm_core.records import Report, Verdict
from mm_core.settings import Settings
from mm_core.store import Store, put_blob
from mm_core.training.tracking import Tracker

NAME = "matting"
ALIASES = ("champion", "anchor", "candidate")
"""What serves; the first model ever promoted, against slow erosion; the newest version."""


class Registry:
    """Reads and moves the registry of `settings.mlflow_uri` (sqlite in the workspace by default, or a server)."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._client_or_none: Any = None

    def pin(self, name: str) -> dict[str, Any] | None:
        """`{"version", "digest", "files"}` of an alias or version number, or None where there is no such version.

        `digest` names the weights' blob, `files` maps the names of the int8 files that shipped to their blobs.
        """
        tags = self.tags(name)
        if tags is None:
            return None
        return {"version": tags["version"], "digest": tags["model_digest"], "files": json.loads(tags["files"])}

    def tags(self, name: str) -> dict[str, str] | None:
        """All tags of an alias or version number, with `version` and `aliases` (JSON list), or None."""
        model = self._model()
        number = name if name.isdecimal() else model and model.aliases.get(name)
        if model is None or not number:
            return None
        version = _or_none(lambda: self._client.get_model_version(NAME, str(number)))
        if version is None or "model_digest" not in version.tags:
            return None
        # MLflow's numbers come as text or int, depending on the backend.
        held_by = sorted(alias for alias, at in model.aliases.items() if str(at) == str(version.version))
        return {**version.tags, "version": str(version.version), "aliases": json.dumps(held_by)}

    def history(self) -> list[dict[str, Any]]:
        """Every move of `champion`, oldest first: `n, from, to` (versions), `who, when` (ISO, UTC), `why`."""
        model = self._model()
        return _history(model) if model else []

    def promote(self, params: Params, layout: Layout, store: Store, verdict: Verdict, report: Report) -> Report:
        """Registers the bundled candidate of a PROMOTE verdict, once, and makes it champion.

        Repeating it changes nothing; killed anywhere, the next call completes it. Raises InputError where the
        candidate has not been exported, ReleaseRefused where another champion was crowned since the verdict.
        """
        bundle = exported_bundle(layout, verdict)
        with held(layout.root / "mlflow" / ".promote.lock"):
            if self._model() is None:
                self._client.create_registered_model(
                    NAME, description="Alpha mattes on phones: encoder, three decoders."
                )
            before = self.pin("champion")
            if before and before["digest"] not in (verdict.champion, verdict.candidate):
                raise ReleaseRefused(
                    f"version {before['version']} became champion after the verdict, which compares with "
                    f"{(verdict.champion or 'none')[:12]}: run another cycle (`mm run`)"
                )
            version = self._version_of(verdict.candidate) or self._register(params, layout, store, verdict, bundle)
            self._point("candidate", version)
            if not before or before["digest"] != verdict.candidate:
                why = f"gate: {verdict.decision} ({verdict.basis}); " + "; ".join(verdict.reasons[:3])
                self._crown(version, why)
            self._settle()
            self._point_if_absent("anchor", self.history()[0]["to"])
        moves = self.history()
        report.facts |= {"version": version, "digest": verdict.candidate, "bundle": str(bundle), "move": moves[-1]}
        report.metrics["promote/version"] = float(version)
        report.tables["history"] = moves
        return report

    def _register(self, params: Params, layout: Layout, store: Store, verdict: Verdict, bundle: Path) -> str:
        """Blobs first, then artifacts, then the version with all its tags at once."""
        manifest = read_manifest(bundle)
        weights = put_blob(store, layout.model(TRAIN_STAGES[-1]))
        if weights != verdict.candidate:
            raise ReleaseRefused(f"the candidate is {weights[:12]} now, the verdict is about {verdict.candidate[:12]}")
        files = {row["file"]: put_blob(store, bundle / row["file"]) for row in manifest["decoders"].values()}
        provenance = gather(params, layout, store, verdict)
        run = Tracker(self._settings).log_report(layout, Report("promote", facts={"model": verdict.candidate}))
        self._client.log_artifacts(run, str(bundle), "bundle")
        tags = {
            "model_digest": verdict.candidate,
            "files": json.dumps(files, sort_keys=True),
            "snapshot": verdict.snapshot,
            "eval_digest": verdict.eval_digest,
            "verdict": verdict.decision,
            "verdict_basis": verdict.basis,
            "code_revision": provenance["code_revision"],
            "bundle": bundle.name,
            "provenance": put_blob(store, json.dumps(provenance, sort_keys=True).encode()),
        }
        made = self._client.create_model_version(
            NAME,
            source=f"{self._client.get_run(run).info.artifact_uri}/bundle",
            run_id=run,
            tags=tags,
            description=(bundle / "MODEL_CARD.md").read_text(),
            await_creation_for=0,
        )
        # Of two machines that register one model at once, the lower number counts.
        return self._version_of(verdict.candidate) or str(made.version)

    def _crown(self, version: str, why: str) -> None:
        """Moves `champion` and writes it down; the announcement tells the next one what a killed process was doing."""
        self._settle()
        moves = self.history()
        entry = {
            "n": len(moves) + 1,
            "from": moves[-1]["to"] if moves else None,
            "to": version,
            "who": who(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "why": why,
        }
        self._client.set_registered_model_tag(NAME, "pending", json.dumps(entry))
        self._point("champion", version)
        self._settle()

    def _settle(self) -> None:
        """Writes down moves that happened and are not in the tags yet."""
        model = self._model()
        for entry in _history(model) if model else []:
            key = f"history.{entry['n']:04d}"
            if key not in model.tags:
                self._client.set_registered_model_tag(NAME, key, json.dumps(entry))

    def _point(self, alias: str, version: str) -> None:
        if str(self._model().aliases.get(alias)) != version:
            self._client.set_registered_model_alias(NAME, alias, version)

    def _point_if_absent(self, alias: str, version: str) -> None:
        if alias not in self._model().aliases:
            self._client.set_registered_model_alias(NAME, alias, version)

    def _version_of(self, digest: str) -> str | None:
        found = self._client.search_model_versions(f"name = '{NAME}' and tags.`model_digest` = '{digest}'")
        return str(min(int(version.version) for version in found)) if found else None

    def _model(self) -> Any:
        """The registered model with its aliases and tags, or None; asks nothing where no database was ever made."""
        uri = self._settings.mlflow_uri
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            return None
        return _or_none(lambda: self._client.get_registered_model(NAME))

    @property
    def _client(self) -> Any:
        if self._client_or_none is None:
            for noisy in ("alembic", "mlflow"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            from mlflow import MlflowClient

            uri = self._settings.mlflow_uri
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client_or_none = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return self._client_or_none


def _history(model: Any) -> list[dict[str, Any]]:
    """The moves on record, and the last one where the alias has moved but nobody wrote it down."""
    moves = [json.loads(value) for key, value in sorted(model.tags.items()) if key.startswith("history.")]
    champion, last = model.aliases.get("champion"), moves[-1]["to"] if moves else None
    if champion is not None and str(champion) != last:
        announced = json.loads(model.tags.get("pending", "{}"))
        if announced.get("to") == str(champion) and announced.get("n") == len(moves) + 1:
            moves.append(announced)
        else:
            moves.append(
                {
                    "n": len(moves) + 1,
                    "from": last,
                    "to": str(champion),
                    "who": "unknown",
                    "when": None,
                    "why": "the alias was moved outside of mm",
                }
            )
    return moves


def who() -> str:
    """Who promotes: the login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _or_none(call: Any) -> Any:
    """The call's result, None where the registry has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
