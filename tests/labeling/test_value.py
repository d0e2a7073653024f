"""The table of what new labels did, on a catalog and snapshot of known content."""

import pandas as pd
from routing_house import House, cell, verdict

from mm_core.core.records import Report, write_json
from mm_core.ingest.placement import POOLS, SCHEMA
from mm_core.labeling.value import value_of_labels
from tests.tiny import snapshot_facts


def label(sample, alpha, origin, version=1):
    return {"id": f"{sample}{alpha}", "sample_id": sample, "alpha_sha256": alpha, "version": version, "origin": origin}


def told(tmp_path, snapshot="s"):
    house = House(tmp_path)
    categories = dict.fromkeys(("chosen", "chosen too", "right"), "pets") | dict.fromkeys(
        ("held", "drop", "old"), "cards"
    )
    origin = dict.fromkeys(categories, "label_studio") | {"drop": "drop", "old": "drop"}
    house.catalog.add("labels", [label(name, f"a-{name}", origin[name]) for name in categories])
    house.catalog.add("labels", [label("right", "wrong", "drop", 0), label("chosen", "by a drop", "drop", 0)])
    for name, queue in (("chosen", "train"), ("chosen too", "train"), ("held", "suspect"), ("right", "train")):
        house.feature(name, "routed", {"score": 1.0}, {"queue": queue})
    frame = pd.DataFrame(
        [{"sample_id": name, "category": c, "alpha_sha256": f"a-{name}"} for name, c in categories.items()]
    )
    for pool in POOLS:
        rows = frame if pool == "train_labeled" else frame.head(0)
        house.layout.snapshot.mkdir(parents=True, exist_ok=True)
        rows.reindex(columns=SCHEMA.names).to_parquet(house.layout.snapshot / f"{pool}.parquet", schema=SCHEMA)
    write_json(house.layout.snapshot / "snapshot.json", snapshot_facts(snapshot))
    pets = cell("pets", 0.2, "pass", candidate=0.15).model_copy(update={"gain": 0.05, "bound": 0.02})
    guard = pets.model_copy(update={"role": "guard", "gain": 9.0})
    house.judge(verdict([pets, cell("cards", 0.1, "unclear", candidate=0.11), guard]))
    learned = {"right": "wrong", "old": "a-old"}
    report = value_of_labels(house.catalog, house.layout, learned, Report("label-value"))
    return report, {row["category"]: row for row in report.tables["value_of_labels"]}


def test_new_labels_are_counted_by_source_beside_what_changed(tmp_path):
    report, rows = told(tmp_path)
    assert set(rows) == {"pets", "cards"}
    counts = {c: {name: row[name] for name in ("routed", "suspect", "corrected", "dropped")} for c, row in rows.items()}
    assert counts["pets"] == {"routed": 2, "suspect": 0, "corrected": 1, "dropped": 0}
    assert counts["cards"] == {"routed": 0, "suspect": 1, "corrected": 0, "dropped": 1}, "the old one is not new"
    assert (rows["pets"]["mse_before"], rows["pets"]["mse_after"]) == (0.2, 0.15)
    assert (rows["pets"]["gain"], rows["pets"]["bound"], rows["pets"]["result"]) == (0.05, 0.02, "pass")
    assert report.metrics == {"labels/routed": 2, "labels/suspect": 1, "labels/corrected": 1, "labels/dropped": 1}


def test_a_verdict_on_another_snapshot_says_nothing_of_these_labels(tmp_path):
    _, rows = told(tmp_path, snapshot="another")
    assert rows["pets"]["routed"] == 2 and rows["pets"]["mse_after"] is None and rows["pets"]["result"] is None
