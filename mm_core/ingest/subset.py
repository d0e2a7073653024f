"""Choose a part of a pool that represents it, for work whose use does not grow with the number of photos."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mm_core.ingest.placement import stable_share


def is_within_limit(frame: pd.DataFrame, most: int, salt: str) -> np.ndarray:
    """Choose at most `most` photos of each category; all of them if `most` is 0.

    Whole groups are taken in the order of a hash of their names, so the choice depends neither on the order of the rows
    nor on earlier choices, and a subset with a smaller limit is part of one with a larger limit. A group that would
    exceed the limit is left out. The first group of a category is taken in any case.

    Args:
        frame: Columns `category` and `group`; a missing category counts as one.
        most: Limit per category.
        salt: Name of the use. Uses with different names choose independently.

    Returns:
        bool (N,): whether a row is chosen.
    """
    categories = frame["category"].fillna("")
    if not most or frame.empty or int(categories.value_counts().max()) <= most:
        return np.ones(len(frame), bool)
    named = frame.assign(stratum=categories, photos=1)
    sizes = named.groupby(["stratum", "group"], sort=False, as_index=False).agg({"photos": "sum"})
    sizes["order"] = [stable_share(group, salt) for group in sizes["group"]]
    chosen: set[tuple[str, str]] = set()
    for category, groups in sizes.sort_values(["order", "group"]).groupby("stratum"):
        left = most
        for number, (group, photos) in enumerate(zip(groups["group"], groups["photos"], strict=True)):
            if photos <= left or not number:
                chosen.add((str(category), group))
                left -= photos
    return np.array([pair in chosen for pair in zip(categories, frame["group"], strict=True)])
