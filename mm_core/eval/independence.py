"""Eval photos to leave out, because a judged model was trained on them or on another photo of their scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from mm_core.ingest.snapshot import components

NAMED = 5
"""Number of photos named in the text of a verdict; the verdict's file lists all of them."""


def learnt_photos(
    eval_frame: pd.DataFrame, samples: pd.DataFrame, learnt: Mapping[str, str], bits: int
) -> dict[str, str]:
    """Return the eval photos that are connected with training photos of a judged model.

    Args:
        eval_frame: The snapshot's eval pool.
        samples: Columns id, group, phash and near of the catalog.
        learnt: Training sample id → description of the model that was trained on it.
        bits: Largest Hamming distance of the perceptual hashes of near-duplicates.

    Returns:
        Eval sample id → description of the model.
    """
    if not learnt:
        return {}
    # Photos of one group and near-duplicates form a connected component, i. e. one scene.
    component = {str(i): int(n) for i, n in zip(samples["id"], components(samples, bits), strict=True)}
    # Reversed, so that the first training photo of a scene names the model.
    who = {number: learnt[sample] for sample, number in reversed(component.items()) if sample in learnt}
    found: dict[str, str] = {}
    for sample in sorted(eval_frame["sample_id"]):
        if sample in learnt:
            found[sample] = learnt[sample]
        # The eval photo itself was not used, but another photo of its scene was.
        elif sample in component and (words := who.get(component[sample])):
            found[sample] = f"{words}, another photo of the scene"
    return found


def in_words(left_out: Mapping[str, str], eval_frame: pd.DataFrame) -> str:
    """Return one line that counts and names the photos left out; empty if `left_out` is empty."""
    if not left_out:
        return ""
    category = dict(zip(eval_frame["sample_id"], eval_frame["category"], strict=True))
    counts = Counter(str(category[sample]) for sample in left_out)
    each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    some = ", ".join(f"{sample[:12]} by {left_out[sample]}" for sample in sorted(left_out)[:NAMED])
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    what = f"{len(left_out)} eval photo{'s' * (len(left_out) > 1)}"
    return f"left out: {what} that a judged model has learnt from ({each}): {some}{more}"
