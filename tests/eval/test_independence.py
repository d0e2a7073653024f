"""Eval photos that a judged model has learnt from do not judge."""

from __future__ import annotations

import pandas as pd

from mm_core.eval.independence import in_words, learnt_photos

SAMPLES = pd.DataFrame(
    [
        {"id": "judge", "group": "a", "phash": "00000000000000ff", "near": None},
        {"id": "learnt", "group": "b", "phash": "ff00000000000000", "near": None},
        {"id": "same scene", "group": "b", "phash": "0f0f000000000000", "near": None},
        {"id": "edit", "group": "c", "phash": "00ff00ff00ff00ff", "near": ["learnt"]},
        {"id": "copy", "group": "d", "phash": "ff00000000000001", "near": None},
    ]
)
FRAME = SAMPLES.rename(columns={"id": "sample_id"}).assign(category=["pets", "pets", "cards", "cards", "cards"])


def test_photos_of_a_learnt_scene_are_found() -> None:
    found = learnt_photos(FRAME, SAMPLES, {"learnt": "version 1 (train_labeled)"}, 3)
    assert set(found) == {"learnt", "same scene", "edit", "copy"}
    assert found["learnt"] == "version 1 (train_labeled)"
    assert found["edit"] == "version 1 (train_labeled), another photo of the scene"


def test_what_nobody_knows_is_no_reason() -> None:
    assert learnt_photos(FRAME, SAMPLES, {}, 3) == {}
    assert learnt_photos(FRAME, SAMPLES, {"forgotten": "version 1 (train_labeled)"}, 3) == {}


def test_words_count_and_name_them() -> None:
    found = learnt_photos(FRAME, SAMPLES, {"learnt": "version 1 (train_labeled)"}, 3)
    text = in_words(found, FRAME)
    assert text.startswith("left out: 4 eval photos") and "cards 3, pets 1" in text and "copy by version 1" in text
    assert in_words({}, FRAME) == ""
