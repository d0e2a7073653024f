"""Forgotten photos leave the files that people's tasks are exchanged in."""

from __future__ import annotations

import json
from pathlib import Path

from mm_core.labeling.forget import forget_tasks
from mm_core.labeling.label_studio import collected, inbox, outbox
from mm_core.layout import Layout
from mm_core.settings import Settings


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
