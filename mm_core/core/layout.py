"""Every path of a workspace, defined in one place."""

from __future__ import annotations

from pathlib import Path

from mm_core.core.errors import InputError
from mm_core.core.settings import Settings

TRAIN_STAGES = ("simple", "hard", "semi", "multimodal")
"""The paper's hierarchical order; each stage starts from the stage before it (Matting Moments, section 2.2)."""


class Layout:
    """The paths of one workspace.

    `cycle/` holds the files of the current cycle, which `dvc repro` tracks. Files that outlive a cycle are outside it:
    blobs and catalog in the store, checkpoints by content key, bundles and reports by version.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.workspace

    def require_free(self, out: Path, remedy: str = "choose another folder with -o") -> None:
        """Check a file or folder that a person names for the results of a command.

        Files of others in a folder of the system would become a drop, be deleted with the cycle, or spoil the store.

        Args:
            out: The file or folder.
            remedy: The action for the user, for the message.

        Raises:
            InputError: It is a folder of the system, or lies in one.
        """
        own = [self.cycle, self.labels, self.label_studio, self.bundles, self.checkpoints, self.cache, self.locks]
        own += [self.mlflow_artifacts.parent, self.dagster_home, self.data_docs]
        own += [Path(url) for url in (self.settings.store, self.settings.inbox) if "://" not in url]
        for folder in own:
            # A link may lead there, and a folder of the system may be a link itself.
            if out.resolve().is_relative_to(folder.resolve()) or out.absolute().is_relative_to(folder):
                raise InputError(f"{out} lies in {folder}, which holds files of the system: {remedy}")

    # Files of the current cycle.
    @property
    def inputs(self) -> Path:
        """The pinned start of the next cycle: catalog versions, champion and anchor."""
        return self.root / "inputs.json"

    @property
    def restoring(self) -> Path:
        """The marker of a restore that is not finished."""
        return self.root / "restoring.json"

    @property
    def cycle(self) -> Path:
        """Folder of the present cycle."""
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
        """The weights that training stage `stage` of this cycle wrote."""
        return self.cycle / "models" / stage / "model.safetensors"

    @property
    def evaluation(self) -> Path:
        """Folder of per_image.parquet, the quantised candidate and sample mattes."""
        return self.cycle / "evaluation"

    @property
    def headline(self) -> Path:
        """A few numbers about the candidate, for `dvc metrics`."""
        return self.cycle / "metrics.json"

    @property
    def per_image(self) -> Path:
        """Scores of each evaluated photo."""
        return self.evaluation / "per_image.parquet"

    @property
    def shadow(self) -> Path:
        """The differences between candidate and champion on the newest unlabelled photos."""
        return self.evaluation / "shadow.json"

    @property
    def quantised(self) -> Path:
        """The candidate's int8 files; the gate judges them and the bundle ships them."""
        return self.cycle / "quantised"

    @property
    def formats(self) -> Path:
        """The candidate in further formats, cached by key outside DVC's outputs because conversion takes minutes."""
        return self.cycle / "formats"

    @property
    def verdict(self) -> Path:
        """The gate's verdict."""
        return self.cycle / "gate" / "verdict.json"

    @property
    def cycle_bundle(self) -> Path:
        """Folder of export.json, which names the bundle or the reason for no export."""
        return self.cycle / "export"

    def stage_report(self, stage: str) -> Path:
        """The `Report` of a stage as JSON."""
        return self.cycle / "reports" / f"{stage}.json"

    @property
    def html_report(self) -> Path:
        """The page of the present cycle."""
        return self.cycle / "report.html"

    # Files that outlive a cycle.
    @property
    def reports(self) -> Path:
        """The HTML reports of past cycles."""
        return self.root / "reports"

    @property
    def labels(self) -> Path:
        """Files exchanged with people: outbox, inbox, collected answers, and the read position of a label server."""
        return self.root / "labels"

    @property
    def label_studio(self) -> Path:
        """The server of `mm label serve`: its data, its account (mode 0600), and `server.json` while it runs."""
        return self.root / "labelstudio"

    @property
    def drift(self) -> Path:
        """Comparison of each batch with the earlier catalog: <kind>/<batch>.json and .png."""
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
        """Training state by content key, outside `cycle/`: DVC must not delete the files that a resume needs."""
        return self.root / "checkpoints"

    # Files that can be deleted: they are made again when they are needed.

    @property
    def cache(self) -> Path:
        """Reproducible data: decoded images, S3 downloads, CLIP towers."""
        return self.root / "cache"

    @property
    def spool(self) -> Path:
        """Temporary files of the batch being ingested."""
        return self.cache / "ingest"

    @property
    def scores(self) -> Path:
        """Kept scores of models on eval photos."""
        return self.cache / "scores"

    @property
    def graphs(self) -> Path:
        """Kept ONNX graphs: of architectures, without weights, and of the packaged classifier."""
        return self.cache / "graphs"

    @property
    def inbox_looks(self) -> Path:
        """What the sensor of arrivals saw at its last look."""
        return self.cache / "inbox-looks.json"

    @property
    def views(self) -> Path:
        """Pictures of suspect mattes next to their photos, drawn by `mm quarantine show`."""
        return self.cache / "quarantine"

    @property
    def locks(self) -> Path:
        """Lock files of `core/locks.py` and their last holders; they belong to this machine and are not backed up."""
        return self.root / "locks"

    # Folders of third-party tools.

    @property
    def mlflow_artifacts(self) -> Path:
        """Folder of MLflow's artifacts, without a tracking server."""
        return self.root / "mlflow" / "artifacts"

    @property
    def dagster_home(self) -> Path:
        """Dagster's folder."""
        return self.root / "dagster"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' Data Docs."""
        return self.root / "data_docs"
