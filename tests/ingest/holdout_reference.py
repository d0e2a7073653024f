"""What is held out of training, photo by photo, as it was computed before the columns: the oracle of the tests.

Only an arriving group can be held out, because a model may have been trained on an earlier one. This module therefore
replays the arrivals of the catalog in order. Each arriving photo joins its component: its declared group and its
near-duplicates. A photo is never held out if its component was in a training pool before. A decision depends only on
its own arrival and earlier ones, so later photos never change it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mm_core.core.params import SnapshotParams
from mm_core.ingest.holdout import LEARNT, MIN_VALIDATION_PHOTOS, eval_quota, validation_quota


@dataclass
class HeldOut:
    """The decisions, one entry per sample in the order of the table given to `hold_out`."""

    evaluation: np.ndarray
    """(samples,) bool: used for evaluation when it has a label and a category."""
    validation: np.ndarray
    """(samples,) bool: used to choose checkpoints."""
    refused: np.ndarray
    """(samples,) str: reason why a row of role `eval` cannot be used for evaluation; empty for all other rows."""


@dataclass
class Needs:
    """The groups of one category for one purpose (evaluation or validation)."""

    seen: set[str] = field(default_factory=set)
    """Groups that have arrived."""
    filled: set[str] = field(default_factory=set)
    """Groups that are held out."""
    lost: list[str] = field(default_factory=list)
    """Sorted times when held-out groups lose their last label."""

    def fill(self, group: str, lost_at: str | None) -> None:
        """Hold a group out; `lost_at` is None if it keeps its label."""
        if group not in self.filled:
            self.filled.add(group)
            if lost_at is not None:
                insort(self.lost, lost_at)

    def count(self, arrival: str) -> int:
        """Return the number of held-out groups with a label at the time of `arrival`."""
        return len(self.filled) - bisect_right(self.lost, arrival)


def hold_out(params: SnapshotParams, table: pd.DataFrame, links: tuple[np.ndarray, np.ndarray]) -> HeldOut:
    """Replay the arrivals of a catalog and decide which samples are held out of training.

    Args:
        params: Shares and least numbers.
        table: One row per sample: `declared` (group), `category` (None: unknown), `kind`, `role`, `near` (whether it
            is an edited form of an earlier photo), `accepted_at`, `lost_at` (time when its last label was withdrawn;
            None: it is in use), `trained` and `validated` (uses by earlier cycles), `eval_share_of` and
            `validation_share_of` (the stable hash of the group, in [0, 1)).
        links: Positions of samples with the same content, as two int arrays of equal length.

    Returns:
        The decisions, in the order of the table.
    """
    return _Replay(params, table, links).run()


class _Replay:
    """One replay: a union-find forest over samples and groups, with flags at the roots of its components."""

    def __init__(self, params: SnapshotParams, table: pd.DataFrame, links: tuple[np.ndarray, np.ndarray]) -> None:
        self.params, count = params, len(table)
        self.declared = table["declared"].tolist()
        self.category = table["category"].tolist()
        self.role = table["role"].fillna("").tolist()
        self.arrival = table["accepted_at"].fillna("").tolist()
        self.labelled = (table["kind"] == "pixel_labeled").tolist()
        self.near = table["near"].tolist()
        self.trained, self.validated = table["trained"].tolist(), table["validated"].tolist()
        self.eval_share = table["eval_share_of"].tolist()
        self.validation_share = table["validation_share_of"].tolist()
        self.lost_at = self._lost_groups(table)
        groups = pd.factorize(table["declared"])[0]
        self.group_node = (count + groups).tolist()
        # Nodes 0 to count - 1 are samples. The following nodes are declared groups.
        self.parent = list(range(count + (int(groups.max()) + 1 if count else 0)))
        self.neighbours: dict[int, list[int]] = defaultdict(list)
        for left, right in zip(links[0].tolist(), links[1].tolist(), strict=True):
            self.neighbours[left].append(right)
            self.neighbours[right].append(left)
        self.arrived = [False] * count
        # Flags per component, stored at its root: whether its photos train, evaluate or validate.
        self.learnt, self.judges, self.validates = ([False] * len(self.parent) for _ in range(3))
        # Whether an earlier cycle has learnt from a photo of the component that has arrived.
        self.bars_eval, self.bars_validation = ([False] * len(self.parent) for _ in range(2))
        self.eval_groups: set[str] = set()
        self.needs: dict[tuple[str, str], Needs] = defaultdict(Needs)
        self.result = HeldOut(np.zeros(count, bool), np.zeros(count, bool), np.full(count, "", dtype=object))

    def _lost_groups(self, table: pd.DataFrame) -> dict[str, str]:
        """Return group → first time when all its photos that had arrived had lost their label."""
        members: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        for group, arrival, lost in zip(self.declared, self.arrival, table["lost_at"], strict=True):
            members[group].append((arrival, None if pd.isna(lost) else lost))
        arrivals = sorted(set(self.arrival))
        found: dict[str, str] = {}
        for group, photos in members.items():
            for when in arrivals:
                there = [lost for arrival, lost in photos if arrival <= when]
                if there and all(lost is not None and lost <= when for lost in there):
                    found[group] = when
                    break
        return found

    def run(self) -> HeldOut:
        """Replay all arrivals in order of time."""
        order: dict[str, list[int]] = defaultdict(list)
        for position, arrival in enumerate(self.arrival):
            order[arrival].append(position)
        # ISO times sort by time. Photos that one run accepted share a time and are decided together.
        for arrival in sorted(order):
            self._arrive(arrival, order[arrival])
        return self.result

    def _root(self, node: int) -> int:
        while self.parent[node] != node:
            # Path halving keeps the trees flat.
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            self.parent[other] = one
            # A joined component has the flags of both parts.
            for flags in (self.learnt, self.judges, self.validates, self.bars_eval, self.bars_validation):
                flags[one] |= flags[other]

    def _arrive(self, arrival: str, rows: list[int]) -> None:
        for row in rows:
            self.arrived[row] = True
            self._join(self.group_node[row], row)
            for other in self.neighbours.get(row, ()):
                # A link to a later photo takes effect when that photo arrives.
                if self.arrived[other]:
                    self._join(row, other)
        roots = {row: self._root(row) for row in rows}
        for row in rows:
            self.bars_eval[roots[row]] |= self.trained[row] or self.validated[row]
            self.bars_validation[roots[row]] |= self.trained[row]
        # Evaluation is decided first, so that validation cannot use an evaluation component.
        fresh = [row for row in rows if not (self.learnt[roots[row]] or self.validates[roots[row]])]
        self._choose_eval(arrival, rows, fresh)
        for row in rows:
            self.judges[roots[row]] |= bool(self.result.evaluation[row])
        self._choose_validation(arrival, rows, roots)
        for row in rows:
            self.validates[roots[row]] |= bool(self.result.validation[row])
        for row in rows:
            root = roots[row]
            # All remaining photos train the model. Their components can never be held out later.
            if not (self.judges[root] or self.validates[root] or self.result.refused[row]):
                self.learnt[root] = True

    def _choose_eval(self, arrival: str, rows: list[int], fresh: list[int]) -> None:
        """Choose evaluation groups: by role `eval`, by the group's hash, then as many as the category still needs."""
        able = {row for row in fresh if not self.bars_eval[self._root(row)]}
        arrived_for_eval = set(fresh)
        waiting: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows:
            group = self.declared[row]
            if self.role[row] == "eval":
                # The producer asked for evaluation. This fails only if related photos were in training.
                self.result.evaluation[row] = row in able
                self.result.refused[row] = "" if row in able else LEARNT
            elif self.labelled[row] and not self.role[row] and not self.near[row] and row in arrived_for_eval:
                # The stable hash gives the share without a random state. A chosen group stays chosen.
                chosen = self.eval_share[row] < self.params.eval_share or group in self.eval_groups
                chosen &= row in able
                self.result.evaluation[row] = chosen
                if row in able and not chosen and self.category[row] is not None and not self.judges[self._root(row)]:
                    # Candidates for the case that the hash gives too few groups.
                    waiting[self.category[row]][group] = self.eval_share[row]
            else:
                continue
            if self.category[row] is not None and self.labelled[row]:
                needs = self.needs["eval", self.category[row]]
                needs.seen.add(group)
                if self.result.evaluation[row]:
                    needs.fill(group, self.lost_at.get(group))
        for category, groups in waiting.items():
            needs = self.needs["eval", category]
            short = eval_quota(len(needs.seen), self.params) - needs.count(arrival)
            open_groups = set(groups) - needs.filled
            # Smallest hashes first: a larger quota then extends the same set.
            picked = sorted(open_groups, key=lambda group: (groups[group], group))[: max(0, short)]
            for group in picked:
                needs.fill(group, self.lost_at.get(group))
            self.eval_groups |= set(picked)
        # Mark all photos of the groups that were picked above.
        for row in able:
            drawn = self.labelled[row] and not self.role[row] and not self.near[row]
            if drawn and self.declared[row] in self.eval_groups:
                self.result.evaluation[row] = True

    def _choose_validation(self, arrival: str, rows: list[int], roots: dict[int, int]) -> None:
        """Choose the arriving components with the smallest hashes up to the category's share.

        Photos of a validation component join it. A photo of unknown category is chosen only with its component.
        """
        able = [
            row
            for row in rows
            if self.labelled[row]
            and self.role[row] != "eval"
            and not (self.learnt[roots[row]] or self.judges[roots[row]])
        ]
        # Components are drawn as a unit. The alphabetically first group gives the unit its name and hash.
        unit: dict[int, int] = {}
        for row in able:
            first = unit.setdefault(roots[row], row)
            if self.declared[row] < self.declared[first]:
                unit[roots[row]] = row
        waiting: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
        barred = self.bars_validation
        chosen = {roots[row] for row in able if self.validates[roots[row]] and not barred[roots[row]]}
        for row in able:
            if self.category[row] is None:
                continue
            root = roots[row]
            name = self.declared[unit[root]]
            needs = self.needs["validation", self.category[row]]
            needs.seen.add(name)
            if root in chosen:
                needs.fill(name, self.lost_at.get(name))
            elif not barred[root]:
                waiting[self.category[row]][name] = (self.validation_share[unit[root]], root)
        for category, groups in waiting.items():
            chosen |= self._draw_validation(category, groups, arrival)
        for row in able:
            self.result.validation[row] = roots[row] in chosen

    def _draw_validation(self, category: str, groups: dict[str, tuple[float, int]], arrival: str) -> set[int]:
        """Return the roots drawn from the waiting `groups` of a category: name → (hash, root)."""
        needs = self.needs["validation", category]
        quota, count = validation_quota(len(needs.seen), self.params), needs.count(arrival)
        open_groups = set(groups) - needs.filled
        # The first draw must reach the minimum in one step. With small drops it starts when the quota is twice that.
        begun = count > 0 or count + len(open_groups) >= MIN_VALIDATION_PHOTOS or quota >= 2 * MIN_VALIDATION_PHOTOS
        if not begun:
            return set()
        drawn = sorted(open_groups, key=lambda name: (groups[name][0], name))[: max(0, quota - count)]
        for name in drawn:
            needs.fill(name, self.lost_at.get(name))
        return {groups[name][1] for name in drawn}
