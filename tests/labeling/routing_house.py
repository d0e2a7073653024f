"""A small workspace for the tests of route and review: catalog, store, photos, features, a verdict, a champion."""

import io
import json
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Cell, Report, Verdict, write_json
from mm_core.core.settings import Settings
from mm_core.labeling.label_studio_format import outbox
from mm_core.labeling.route import route_hard
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, put_blob

SIDE = 48


class House:
    def __init__(self, root):
        self.layout = Layout(Settings.from_env(root))
        self.store = LocalStore(root / "store")
        self.catalog = Catalog(self.store.url)
        self.inputs = {"catalog": {}, "champion": None, "anchor": None}
        self.numbered = {}

    def add(self, number, **values):
        """A photo of its own, of number `number`."""
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        sample = self.numbered[number] = put_blob(self.store, stream.getvalue())
        row = {
            "id": sample, "kind": "unlabeled", "batch": "b", "category": None, "caption": None, "group": f"g{number}",
            "role": "", "width": SIDE, "height": SIDE, "phash": f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}",
        }  # fmt: skip
        self.catalog.add("samples", [row | values])
        return sample

    def feature(self, sample, extractor, numbers, texts=None, vector=None):
        row = {
            "sample_id": sample, "extractor": extractor, "version": "1", "numbers": numbers, "texts": texts or {},
            "computed_at": "2026-11-01T00:00:00+00:00", "vector": vector,
        }  # fmt: skip
        self.catalog.add("features", [row])

    def vector(self, number, values):
        self.feature(self.numbered[number], "embedding", {}, vector=[float(v) for v in values])

    def crown(self, path):
        """A champion with random weights."""
        from mm_core.core.params import ModelParams
        from mm_core.model.files import save_model
        from mm_core.model.network import build_model

        net = build_model(ModelParams(pretrained="", encoder="test_efficientnet", size=64, width=4), seed=0)
        save_model(path, net, {"stage": "multimodal"})
        self.inputs["champion"] = {"version": "3", "digest": put_blob(self.store, path), "files": {}}

    def judge(self, spoken):
        write_json(self.layout.verdict, spoken.model_dump())

    def run(self, **sections):
        """A run on this house's own store and catalog, which some tests replace."""
        run = StorageRun(Params(**sections), self.layout)
        vars(run).update(store=self.store, catalog=self.catalog)
        return run

    def route(self, params, now=None):
        return route_hard(self.run(route=params), self.inputs, Report("route"), now=now or datetime.now(UTC))

    def tasks(self):
        return [task for path in sorted(outbox(self.layout).glob("*.json")) for task in json.loads(path.read_text())]


def cell(category, reference, result, candidate=0.01):
    return Cell(
        category=category, metric="mse", against="champion", role="superior", reference=reference, candidate=candidate,
        gain=0, bound=0, margin=0, images=9, groups=9, result=result,
    )  # fmt: skip


def verdict(cells):
    return Verdict(
        decision="INCONCLUSIVE", basis="paired", reasons=[], candidate="c" * 64, champion="d" * 64, anchor=None,
        snapshot="s", eval_digest="e", cells=cells, created_at="2026-11-01T00:00:00+00:00",
    )  # fmt: skip
