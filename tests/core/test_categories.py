"""A category is one entry of the table: a process with one more entry trains, guesses and reports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mm_core.core.categories import ALL_CATEGORIES, CATEGORIES, DECODERS, TABLE

PROJECT = Path(__file__).resolve().parents[2]
ONE_MORE = """
from mm_core.core import categories

more = categories.Category("plants", "saliency", ("plant", "plants"), ("a photo of a plant",), "plants")
categories.TABLE = (*categories.TABLE, more)
source = open(categories.__file__).read()
# The names that the module derives from its table, made again from the longer one.
exec(source[source.index("CATEGORIES = "):], vars(categories))

from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, decoder_of
from mm_core.eval.metrics import category_scores
from mm_core.core.spellings import category_of
from mm_core.moments.story import NOUNS
from mm_core.structuring.category_guess import SENTENCES
import pandas as pd, numpy as np

assert CATEGORIES[-1] == "plants" and ALL_CATEGORIES[-2:] == ("plants", "scenery")
assert decoder_of("plants") == "saliency" and category_of("PLANTS") == "plants"
assert NOUNS["plants"] == "plants" and SENTENCES["plants"]
assert Params().with_values(**{"structure.ocr": ("plants",)}).structure.ocr == ("plants",)
scalars = dict.fromkeys(("mse", "mse_band", "sad", "grad", "conn", "biou", "maxf"), 0.5)
row = {"category": "plants", "fcurve": np.ones(256)} | scalars
assert list(category_scores(pd.DataFrame([row])).index)[0] == "plants"
print("one entry is enough")
"""


def test_one_more_entry_is_known_everywhere() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_MORE], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "one entry is enough", done.stderr


def test_the_table_names_each_category_decoder_and_spelling_once() -> None:
    spellings = [spelling for category in TABLE for spelling in category.spellings]
    assert len(set(spellings)) == len(spellings) and len(set(ALL_CATEGORIES)) == len(TABLE)
    assert {category.decoder for category in TABLE} == set(DECODERS)
    assert len(CATEGORIES) == 6
    assert all(category.name.replace("_", "") in category.spellings for category in TABLE)
