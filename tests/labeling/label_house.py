"""A workspace of generated photos that were sent to people, and what is exactly true of each of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from annotator import Truth
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.params import LabelParams, ModelParams, Params, RouteParams
from mm_core.core.progress import Progress, quiet
from mm_core.core.records import CATEGORIES, Report
from mm_core.core.settings import Settings
from mm_core.imaging.images import load_alpha
from mm_core.ingest.placement import newest_labels
from mm_core.labeling.apply_annotations import Taken
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import brush_region, outbox
from mm_core.labeling.label_studio_local import LocalServer, read_account
from mm_core.labeling.pull import pull_labels
from mm_core.labeling.push import push_tasks
from mm_core.labeling.rle import decode_rle
from mm_core.labeling.route import route_hard
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, fetch_blob, put_blob
from samplegen import generate


class LabelHouse:
    """Generated photos of every category in a catalog, a champion of a few thousand parameters, and a project."""

    def __init__(self, root: Path, photos: int, *, size: int = 64, seed: int = 0, stated: bool = False):
        settings = Settings(root, "", str(root / "store"), "", root / "params.yaml", "cpu")
        self.layout = Layout(settings)
        self.store, self.catalog = LocalStore(root / "store"), Catalog(settings.store)
        self.truth: dict[str, Truth] = {}
        rows = [self._photo(n, seed + n, size) for n in range(photos)]
        if stated:
            rows = [row | {"category": self.truth[row["id"]].category} for row in rows]
        self.catalog.add("samples", rows)
        self.inputs = {"catalog": {}, "champion": self._champion(root), "anchor": None}

    def _photo(self, n: int, seed: int, size: int) -> dict:
        category = CATEGORIES[n % len(CATEGORIES)]
        made = generate(category, seed, size=size, aspect=3 / 4)
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6  # as a phone held upright stores it: lying on its side
        Image.fromarray(np.rot90(made.image)).save(stream, "JPEG", quality=95, exif=exif)
        sample = put_blob(self.store, stream.getvalue())
        self.truth[sample] = Truth(made.alpha, category)
        height, width = made.alpha.shape
        return {
            "id": sample, "kind": "unlabeled", "batch": "b", "group": f"g{n}", "role": "train", "width": width,
            "height": height, "phash": f"{(seed + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}",
        }  # fmt: skip

    def _champion(self, root: Path) -> dict:
        from mm_core.model.files import save_model
        from mm_core.model.network import build_model

        net = build_model(ModelParams(pretrained="", encoder="u2netp", size=64, width=4), seed=0)
        save_model(root / "champion.safetensors", net, {"stage": "multimodal"})
        return {"version": "3", "digest": put_blob(self.store, root / "champion.safetensors"), "files": {}}

    def run(self, **sections: LabelParams | RouteParams) -> StorageRun:
        """A run on this house's own store and catalog, which some tests replace."""
        run = StorageRun(Params(**sections), self.layout)
        vars(run).update(store=self.store, catalog=self.catalog)
        return run

    def route(self, budget: int) -> None:
        chosen = RouteParams(budget=budget, per_day=budget, per_category=budget, look=max(budget, 480))
        route_hard(self.run(route=chosen), self.inputs, Report("route"))

    def tasks(self) -> list[dict]:
        return [task for path in sorted(outbox(self.layout).glob("*.json")) for task in json.loads(path.read_text())]

    def predict(self, make: Callable[[np.ndarray], np.ndarray], version: str) -> None:
        """Puts other mattes into the waiting tasks: `make` of the true alpha, float (H, W) → uint8 (H, W)."""
        for path in outbox(self.layout).glob("*.json"):
            tasks = json.loads(path.read_text())
            for task in tasks:
                alpha = make(self.truth[task["data"]["key"]].alpha)
                others = [r for made in task["predictions"] for r in made["result"] if r["type"] != "brushlabels"]
                task["predictions"] = [{"model_version": version, "result": [brush_region(alpha), *others]}]
            path.write_text(json.dumps(tasks))

    def sent_mattes(self) -> dict[str, np.ndarray]:
        """The prediction of each task in the outbox, by key."""
        found = {}
        for task in self.tasks():
            region = task["predictions"][0]["result"][0]
            size = region["original_width"], region["original_height"]
            found[task["data"]["key"]] = decode_rle(region["value"]["rle"], *size)
        return found

    def push(self, server: Server, progress: Progress = quiet) -> dict[str, float]:
        return push_tasks(self.layout, server, Report("push"), progress=progress).metrics

    def pull(self, server: Server, params: LabelParams | None = None) -> Taken:
        taken = Taken()
        pull_labels(self.run(label=params or LabelParams()), server, taken)
        return taken

    def labels(self) -> pd.DataFrame:
        """The label that counts of each photo, by sample id."""
        return newest_labels(self.catalog.read("labels")).set_index("sample_id")

    def matte(self, sample: str) -> np.ndarray:
        alpha = load_alpha(fetch_blob(self.store, self.labels().loc[sample, "alpha_sha256"]))
        return np.rint(alpha * 255).astype(np.uint8)


def server_of(local: LocalServer, title: str, token: str = "") -> Server:
    return Server(local.url, token or read_account(local.folder)["token"], title)


def elsewhere(house: LabelHouse, root: Path) -> Layout:
    """A workspace of another machine: the same catalog and store, nothing known of the server."""
    return Layout(replace(house.layout.settings, workspace=root))
