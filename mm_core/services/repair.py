"""Repairs of `mm check --repair`: restore blobs from their sources, and delete files that can be computed again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mm_core.core.errors import InputError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.records import sha256_bytes, sha256_file
from mm_core.imaging.images import UnreadableImage, encode_alpha, load_alpha
from mm_core.ingest.inbox import MANIFESTS
from mm_core.ingest.manifest import read_manifest
from mm_core.ingest.probe import OutsideBatch, fetch_named
from mm_core.services.check import Fault
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store, blob_key, open_store


def repair(layout: Layout, faults: Sequence[Fault]) -> None:
    """Repair the faults that can be repaired and record how; the others keep their remedy."""
    sources = _Sources(layout)
    for fault in faults:
        if fault.kind == "blob" and fault.digest:
            fault.repaired = sources.restore(fault.digest)
            if not fault.repaired:
                fault.remedy = "no copy is available: restore it from a backup, or send its drop again and repeat"
        elif fault.kind == "checkpoint":
            # The whole folder: model and report of a training belong together.
            shutil.rmtree(Path(fault.where).parent)
            fault.repaired = "removed: the stage trains again"


class _Sources:
    """Places that may contain a second copy of a blob's content."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.store = open_store(layout.settings.store, layout.cache)
        self.inbox: Store = open_store(layout.settings.inbox, layout.cache / "inbox")
        self.catalog = Catalog(layout.settings.store)

    def restore(self, digest: str) -> str:
        """Write a blob again; return its source, or "" if no source has it."""
        for source, words in (
            (self._of_workspace, "the workspace"),
            (self._photo, "its drop"),
            (self._matte, "its drop"),
        ):
            content = source(digest)
            if content is not None:
                # The store compares the digest once more.
                self.store.put(blob_key(digest), content, sha256=digest)
                return f"restored from {words}"
        return ""

    def _of_workspace(self, digest: str) -> Path | None:
        return self._files.get(digest)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Models and frames of the workspace by digest."""
        # Hash all files once; a repair may look up many digests.
        folders = (self.layout.bundles, self.layout.cycle, self.layout.checkpoints)
        paths = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return {sha256_file(path): path for path in paths}

    def _photo(self, digest: str) -> Path | None:
        """Return the photo from its drop, if it is still there unchanged."""
        rows = self.catalog.read("samples", columns=["kind", "batch", "name"], filters=[("id", "=", digest)])
        for row in rows.to_dict("records"):
            path = self._fetched(f"{row['kind']}/{row['batch']}", str(row["name"]))
            if path is not None and sha256_file(path) == digest:
                return path
        return None

    def _matte(self, digest: str) -> bytes | None:
        """Encode the matte again from the file in its drop."""
        labels = self.catalog.read("labels", columns=["sample_id", "batch"], filters=[("alpha_sha256", "=", digest)])
        for batch in dict.fromkeys(labels["batch"]):
            for name in self._alphas(str(batch)):
                path = self._fetched(f"pixel_labeled/{batch}", name)
                # Mattes were stored with 8 or 16 bits; only the right encoding has the digest.
                for sixteen in (False, True) if path is not None else ():
                    try:
                        data = encode_alpha(load_alpha(path), sixteen_bit=sixteen)  # type: ignore[arg-type]
                    except UnreadableImage:
                        break
                    if sha256_bytes(data) == digest:
                        return data
        return None

    def _alphas(self, batch: str) -> list[str]:
        """Return the names of the matte files in a batch's manifest."""
        for manifest in MANIFESTS:
            path = self._fetched(f"pixel_labeled/{batch}", manifest)
            if path is not None:
                try:
                    return [row.alpha for row in read_manifest(path) if row.alpha]
                except InputError:
                    return []
        return []

    def _fetched(self, drop: str, name: str) -> Path | None:
        """Return the local path of a file of a drop by its name in the manifest, or None if it is missing."""
        try:
            return fetch_named(self.inbox, drop, name)
        except (StoreError, OutsideBatch):
            return None
