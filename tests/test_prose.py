"""What the style page limits stays within its limits: idioms, comments, untyped values, imports in functions."""

from __future__ import annotations

import ast

import pytest

from benchmarks.house_count import comments, count_idioms, imports_in_functions, measure, read_working_tree

PLAIN = '''"""Return the mean matte of each category."""

def mean(values: list[float]) -> float:
    """Return the mean of some values."""
    # The sum of an empty list is 0.
    return sum(values) / max(1, len(values))
'''
IDIOMATIC = '''"""What is said of a cut lies beside the photo."""
from typing import Any

def told(row: dict[str, Any]) -> Any:
    """Of a cut the teacher knows less, and nobody asks why."""
    import json

    from mm_core.core import records  # noqa: F401

    return json.loads(row["text"])
'''


@pytest.fixture(scope="module")
def measures() -> dict[str, str]:
    return measure(read_working_tree())


def test_idioms_are_found_and_plain_sentences_are_not() -> None:
    assert count_idioms({"a.py": PLAIN}) == (0, 3)
    assert count_idioms({"a.py": IDIOMATIC}) == (2, 2)


def test_directives_are_no_comments() -> None:
    assert [words for words, _ in comments(IDIOMATIC)] == []
    assert [alone for _, alone in comments(PLAIN)] == [True]


def test_imports_in_functions_are_told_apart() -> None:
    assert imports_in_functions(ast.parse(IDIOMATIC)) == (1, 1)


def test_untyped_values_are_counted() -> None:
    counted = measure({"mm_core/eval/a.py": IDIOMATIC, "mm_core/stages.py": "import mm_core.eval.a\n"})
    assert counted["`Any` in annotations"] == "2" and counted["`dict[str, Any]`"] == "1"
    assert counted["arrows between rooms"] == "1" and counted["modules loose on top of `mm_core`"] == "1"


def test_at_most_one_sentence_in_twenty_is_an_idiom(measures: dict[str, str]) -> None:
    assert float(measures["idiom sentences"].split()[0]) <= 5, measures


def test_comments_do_not_become_rare(measures: dict[str, str]) -> None:
    assert float(measures["comment lines of `mm_core`"].split()[0]) >= 3.9, measures


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("`Any`, every mention", 60),
        ("`dict[str, Any]`", 0),
        ("imports in functions", 60),
        ("outside `cli` and `pipelines`: of our own modules", 14),
        ("outside `cli` and `pipelines`: of third parties", 24),
        ("modules loose on top of `mm_core`", 4),
        ("arrows between rooms", 132),
    ],
)
def test_the_counts_do_not_grow(measures: dict[str, str], name: str, most: int) -> None:
    assert int(measures[name]) <= most, f"{name}: {measures[name]}, at most {most}"
