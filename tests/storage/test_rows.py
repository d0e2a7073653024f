"""The typed rows have the columns of the catalog's schemas, and `records` gives None for missing values."""

from __future__ import annotations

from typing import get_type_hints

import pandas as pd
import pytest

from mm_core.storage.rows import BatchRow, CorrectionRow, FeatureRow, LabelRow, RejectRow, SampleRow, records
from mm_core.storage.schemas import SCHEMAS


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("batches", BatchRow),
        ("samples", SampleRow),
        ("labels", LabelRow),
        ("rejects", RejectRow),
        ("corrections", CorrectionRow),
        ("features", FeatureRow),
    ],
)
def test_a_row_has_the_columns_of_its_table(table: str, row: type) -> None:
    assert set(get_type_hints(row)) == set(SCHEMAS[table].names)


def test_missing_values_become_none() -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "width": [1.0, None], "category": [None, "pets"]})
    rows = records(frame, SampleRow)
    assert rows[0]["category"] is None and rows[1]["width"] is None and rows[0]["width"] == 1.0
