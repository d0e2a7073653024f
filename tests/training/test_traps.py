"""docs/traps.md: each trap names a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_each_trap_has_its_test() -> None:
    rows = (PROJECT / "docs" / "traps.md").read_text().split("|---|---|\n")[1].splitlines()
    named = [re.fullmatch(r"\| [^|]+ \| `([\w/.]+)::(\w+)` \|", row) for row in rows if not row.startswith("| **")]
    assert len(named) > 20
    for row in named:
        assert row, "a row without a test"
        assert f"def {row[2]}(" in (PROJECT / row[1]).read_text(), row[0]
