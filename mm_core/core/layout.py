"""Every path of the workspace, said once."""

from __future__ import annotations

from pathlib import Path

from mm_core.core.settings import Settings

TRAIN_STAGES = ("simple", "hard", "semi", "multimodal")
"""The paper's hierarchical order; each starts from the stage before (Matting Moments, section 2.2)."""


class Layout:
    """Where each file of a workspace lies.

    `cycle/` holds the one cycle in work (what `dvc repro` tracks); what must outlive it lies beside:
    blobs and catalog in the store, checkpoints by content key, bundles and reports by version.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.root = settings.workspace

    @property
    def inputs(self) -> Path:
        """What the next cycle starts from: catalog versions, champion and anchor, pinned."""
        return self.root / "inputs.json"

    @property
    def cycle(self) -> Path:
        return self.root / "cycle"

    @property
    def snapshot(self) -> Path:
        """Frozen parquet manifests and snapshot.json."""
        return self.cycle / "snapshot"

    @property
    def split(self) -> Path:
        """simple.parquet, hard.parquet."""
        return self.cycle / "split"

    def model(self, stage: str) -> Path:
        """The weights that training stage `stage` of this cycle left."""
        return self.cycle / "models" / stage / "model.safetensors"

    @property
    def evaluation(self) -> Path:
        """per_image.parquet, the quantised candidate, sample mattes."""
        return self.cycle / "evaluation"

    @property
    def per_image(self) -> Path:
        return self.evaluation / "per_image.parquet"

    @property
    def shadow(self) -> Path:
        """How candidate and champion differ on the newest unlabelled photos."""
        return self.evaluation / "shadow.json"

    @property
    def quantised(self) -> Path:
        """The candidate as int8 files: what the gate judges and the bundle ships."""
        return self.cycle / "quantised"

    @property
    def formats(self) -> Path:
        """The candidate in further formats, kept by key beside what DVC tracks: making them takes minutes."""
        return self.cycle / "formats"

    @property
    def verdict(self) -> Path:
        return self.cycle / "gate" / "verdict.json"

    @property
    def cycle_bundle(self) -> Path:
        """export.json: where the bundle went, or why nothing left."""
        return self.cycle / "export"

    def stage_report(self, stage: str) -> Path:
        """The `Report` of a stage as JSON."""
        return self.cycle / "reports" / f"{stage}.json"

    @property
    def html_report(self) -> Path:
        return self.cycle / "report.html"

    @property
    def reports(self) -> Path:
        """The HTML reports of past cycles."""
        return self.root / "reports"

    @property
    def labels(self) -> Path:
        """What is exchanged with people: outbox, inbox, collected, and how far a server has been read."""
        return self.root / "labels"

    @property
    def label_studio(self) -> Path:
        """The server of `mm label serve`: its data, its account (0600), and `server.json` while it runs."""
        return self.root / "labelstudio"

    @property
    def drift(self) -> Path:
        """How each batch compares with the catalog before it: <kind>/<batch>.json and .png."""
        return self.reports / "drift"

    @property
    def bundles(self) -> Path:
        """bundle/<version>/, one folder per released version."""
        return self.root / "bundle"

    @property
    def moments(self) -> Path:
        """moments.json and the finished pieces of the gallery's moments."""
        return self.root / "moments"

    @property
    def checkpoints(self) -> Path:
        """Training state by content key: outside `cycle/`, so that DVC never deletes what a resume needs."""
        return self.root / "checkpoints"

    @property
    def cache(self) -> Path:
        """Anything that can be made again: decoded images, S3 downloads, CLIP towers."""
        return self.root / "cache"

    @property
    def spool(self) -> Path:
        """What a batch in work keeps on disk."""
        return self.cache / "ingest"

    @property
    def views(self) -> Path:
        """Suspect mattes beside their photos, as `mm quarantine show` drew them."""
        return self.cache / "quarantine"

    @property
    def locks(self) -> Path:
        """Lock files of `core/locks.py` and their last holders: of this machine alone, so no backup holds them."""
        return self.cache / "locks"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlflow" / "artifacts"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' Data Docs."""
        return self.root / "data_docs"
