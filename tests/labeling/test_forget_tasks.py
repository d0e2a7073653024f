"""Forgotten photos leave the files that people's tasks are exchanged in."""

from __future__ import annotations

import json
from pathlib import Path

from annotator import SimulatedAnnotator
from label_house import LabelHouse, server_of

from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.labeling.forget import forget_on_server, forget_tasks
from mm_core.labeling.label_studio_format import collected, inbox, outbox


def test_task_files_are_cleaned(tmp_path: Path) -> None:
    layout = Layout(Settings.from_env(tmp_path))
    tasks = [{"data": {"key": key}} for key in "ab"]
    (outbox(layout) / "x").mkdir(parents=True)
    for key in "ab":
        (outbox(layout) / "x" / f"{key}.jpg").write_bytes(b"picture")
    for folder, name in ((outbox(layout), "x.json"), (inbox(layout), "y.json"), (collected(layout), "z.json")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(tasks))
    (inbox(layout) / "broken.json").write_text("no")
    assert forget_tasks(layout, {"a"}) == 4
    assert [p.name for p in outbox(layout).glob("x/*")] == ["b.jpg"]
    for folder in (outbox(layout), inbox(layout), collected(layout)):
        for path in folder.glob("[xyz].json"):
            assert json.loads(path.read_text()) == tasks[1:]
    assert forget_tasks(layout, {"a"}) == 0


def test_tasks_and_pictures_leave_the_server(tmp_path: Path, label_studio, title: str) -> None:
    house = LabelHouse(tmp_path, 3)
    house.route(3)
    server = server_of(label_studio, title)
    house.push(server)
    gone, *kept = sorted(house.truth)
    SimulatedAnnotator(server, house.truth).work([gone, kept[0]])
    assert forget_on_server(server, {gone, "f" * 64}) == 1
    assert sorted(server.tasks_of(house.truth)) == kept == sorted(name[: -len(".jpg")] for name in server.uploads())
    assert forget_on_server(server, {gone}) == 0
