"""Which eval photos cannot judge, because a judged model has learnt from them or from others of their scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mm_core.ingest.snapshot import components

NAMED = 5
"""Photos named in the words of a verdict; the verdict's file has all of them."""


def learnt_photos(
    eval_frame: pd.DataFrame, samples: pd.DataFrame, learnt: Mapping[str, str], bits: int
) -> dict[str, str]:
    """Return the eval photos that belong with what a judged model has learnt from.

    Args:
        eval_frame: The snapshot's eval pool.
        samples: Columns id, group, phash and near of the catalog.
        learnt: Sample id → words for the model that learnt from it.
        bits: Perceptual hashes that differ in at most this many bits show the same.

    Returns:
        Eval sample id → words for the model.
    """
    if not learnt:
        return {}
    component: Any = pd.Series(components(samples, bits), index=pd.Index(samples["id"]))
    learnt_here = component[component.index.isin(list(learnt))]
    who = {int(number): learnt[sample] for sample, number in reversed(list(learnt_here.items()))}
    found: dict[str, str] = {}
    for sample in sorted(eval_frame["sample_id"]):
        if sample in learnt:
            found[sample] = learnt[sample]
        elif sample in component.index and (words := who.get(int(component[sample]))):
            found[sample] = f"{words}, another photo of the scene"
    return found


def in_words(left_out: Mapping[str, str], eval_frame: pd.DataFrame) -> str:
    """Return one line that counts and names the photos left out; empty where there are none."""
    if not left_out:
        return ""
    category = dict(zip(eval_frame["sample_id"], eval_frame["category"], strict=True))
    counts = Counter(str(category[sample]) for sample in left_out)
    each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    some = ", ".join(f"{sample[:12]} by {left_out[sample]}" for sample in sorted(left_out)[:NAMED])
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return f"left out: {len(left_out)} eval photos that a judged model has learnt from ({each}): {some}{more}"
