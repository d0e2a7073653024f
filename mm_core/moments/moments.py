"""Moments: what happened in a gallery, told by its best photos and finished pieces (Matting Moments, section 2.3).

Events by time and place, one photo of those that repeat, the best by quality and variety, a title, a tone, and for
each piece the reason why it was made. What was made is kept: a new photo costs its own event.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.outputs import check_outputs
from mm_core.core.params import MomentsParams
from mm_core.core.records import Report, digest_of, read_keyed, write_bytes, write_json
from mm_core.effects.cutout import Cutout
from mm_core.imaging.hash_index import Hashed, find_candidates
from mm_core.imaging.images import load_rgb
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance, same_picture, same_scene
from mm_core.model.predict import Predictor
from mm_core.moments.events import cluster, representatives, time_of
from mm_core.moments.gallery_reader import Gallery, Picture, seconds_of
from mm_core.moments.pieces import VERSION, Matted, collage, file_of, finished
from mm_core.moments.story import title, tone
from mm_core.moments.strategy import Facts, Offer, offers

MOST_PIECES = 3
"""Finished pieces of a moment beside the collage."""
_IN_THE_MAKING = "in the making"
"""Key of a moment whose pieces are not all written."""
COLLAGE = 2
"""Cut-outs that a collage needs."""


@dataclass(frozen=True)
class Event:
    """Photos that belong together."""

    pictures: list[Picture]
    """By time; without repetitions."""
    times: list[datetime | None]
    repeated: int
    """Photos that repeat one of them."""

    @property
    def name(self) -> str:
        """Stable while its first photo stays: the name of the moment's folder."""
        return f"{self.times[0]:%Y-%m-%d}-{self.pictures[0].digest[:8]}" if self.times[0] else "undated"


def events_of(gallery: Gallery, params: MomentsParams, bits: int) -> list[Event]:
    """Events with `least` different photos or more, by time. Undated photos, if so many, are the last."""
    pictures = gallery.pictures
    times = [time_of(p.taken_at, p.path.name) for p in pictures]
    places = np.array([p.place for p in pictures], float).reshape(-1, 2)
    labels = cluster(
        seconds_of(times), places, [p.camera for p in pictures],
        gap_hours=params.gap_hours, radius_km=params.radius_km, speed_kmh=params.speed_kmh,
    )  # fmt: skip
    found = []
    for label in [*range(labels.max(initial=-1) + 1), -1]:
        members = sorted(np.flatnonzero(labels == label), key=lambda n: (times[n] or datetime.min, pictures[n].name))
        kept = [members[n] for n in distinct([pictures[m] for m in members], bits)]
        if len(kept) >= params.least:
            found.append(Event([pictures[n] for n in kept], [times[n] for n in kept], len(members) - len(kept)))
    return found


def distinct(pictures: Sequence[Picture], bits: int) -> list[int]:
    """Positions, in order, of the best photo of each set that shows the same: saved again, or frames of a burst."""
    hashed = Hashed.of(range(len(pictures)), [p.phash for p in pictures], [p.landmarks for p in pictures])
    looks: dict[int, np.ndarray] = {}

    def look(n: int) -> np.ndarray:
        if n not in looks:
            looks[n] = glance(load_rgb(pictures[n].path, LOOK_SIDE))
        return looks[n]

    root = list(range(len(pictures)))

    def leader(n: int) -> int:
        while root[n] != n:
            n = root[n]
        return n

    for n, near in enumerate(find_candidates(hashed, [hashed], bits)):
        for other in sorted({*near.copies, *near.edits}):
            if other >= n or leader(n) == leader(other):
                continue
            same = pictures[n].digest == pictures[other].digest
            if same or same_picture(look(n), look(other)) or same_scene(look(n), look(other)):
                root[leader(n)] = leader(other)
    sets: dict[int, list[int]] = {}
    for n in range(len(pictures)):
        sets.setdefault(leader(n), []).append(n)
    return sorted(max(members, key=lambda n: (pictures[n].quality, -n)) for members in sets.values())


def make_moments(
    gallery: Gallery,
    out: Path,
    params: MomentsParams,
    bits: int,
    report: Report,
    *,
    predictor: Predictor | None,
    model: str,
    progress: Callable[[str, int, int], None],
) -> Report:
    """Writes `out/moments.json` and a folder per moment with its pieces; what has not changed is left as it is.

    `predictor` None: moments without pieces. `model` names it in what is kept and said. Folders of moments that are
    no more are removed, but those that hold files of others. Killed at any point, the next run goes on: moments.json is
    written last. Raises InputError, before anything is written, where a folder or file of another origin would be
    replaced.
    """
    made, counts = [], {"new": 0, "kept": 0}
    events = events_of(gallery, params, bits)
    keys = [
        digest_of(
            [VERSION, model, params.model_dump(mode="json"), [(p.digest, p.name, p.category) for p in e.pictures]]
        )
        for e in events
    ]
    kept = [read_keyed(out / event.name / "moment.json", key) for event, key in zip(events, keys, strict=True)]
    to_write = [out / event.name for event, known in zip(events, kept, strict=True) if known is None]
    check_outputs([out / "moments.json", *to_write], [p.path for p in gallery.pictures], is_ours=_is_ours)
    for number, (event, key, known) in enumerate(zip(events, keys, kept, strict=True)):
        if known is None:
            known = _moment(event, out / event.name, params, predictor, model)
            write_json(out / event.name / "moment.json", known | {"key": key})
            counts["new"] += 1
        else:
            counts["kept"] += 1
        made.append({name: value for name, value in known.items() if name != "key"})
        progress("moments", number + 1, len(events))
    _remove_others(out, {event.name for event in events})
    write_json(out / "moments.json", {"model": model, "moments": made, "unreadable": gallery.unreadable})
    in_moments = sum(len(m["photos"]) + m["repeated"] for m in made)
    report.metrics |= {
        "moments/photos": len(gallery.pictures),
        "moments/looked_at": gallery.looked_at,
        "moments/unreadable": len(gallery.unreadable),
        "moments/moments": len(made),
        "moments/made": counts["new"],
        "moments/kept": counts["kept"],
        "moments/photos_in_moments": in_moments,
        "moments/pieces": sum(len(m["pieces"]) for m in made),
    }
    report.facts |= {"out": str(out), "model": model}
    report.tables["moments"] = [
        {"title": m["title"], "tone": m["tone"], "photos": len(m["photos"]), "pieces": len(m["pieces"])} for m in made
    ]
    report.pictures |= {m["title"]: str(out / m["pieces"][0]["file"]) for m in made if m["pieces"]}
    report.tables["unreadable"] = list(gallery.unreadable)
    return report


def _is_ours(path: Path) -> bool:
    """Whether an earlier run made this moment's folder, or this `moments.json`."""
    if path.is_dir():
        return not _foreign_files(path)
    try:
        return "moments" in json.loads(path.read_text())
    except (OSError, ValueError):
        return False


def _foreign_files(folder: Path) -> list[Path]:
    """The files of a moment's folder that no run made: all but `moment.json` and the pieces that it names.

    Of a run that was killed the names of the pieces are not known: its folder then counts as ours.
    """
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    try:
        moment = json.loads((folder / "moment.json").read_text())
        ours = {"moment.json", *(Path(piece["file"]).name for piece in moment.get("pieces", ()))}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return files
    if moment.get("key") == _IN_THE_MAKING:
        return []
    return [path for path in files if path.parent != folder or path.name not in ours]


def _moment(event: Event, folder: Path, params: MomentsParams, predictor: Predictor | None, model: str) -> dict:
    """One moment as JSON values; its pieces are written to `folder`."""
    if folder.exists():
        shutil.rmtree(folder)
    # Before the pieces: what a killed run leaves can be told from a folder of the user's.
    write_json(folder / "moment.json", {"key": _IN_THE_MAKING})
    facts = [Facts.of(p.category, p.found) for p in event.pictures]
    scores = np.array([p.quality for p in event.pictures])
    kinds = [p.category or "unknown" for p in event.pictures]
    best = representatives(scores, np.stack([p.vector for p in event.pictures]), kinds, params.best)
    mood, why = tone(facts, event.times)
    pieces: list[dict[str, Any]] = []
    if predictor is not None:
        for name, piece, about in _pieces(event, facts, best, mood, params, predictor):
            suffix, data = file_of(piece, model=model, function=about["function"])
            write_bytes(folder / f"{name}{suffix}", data)
            pieces.append(about | {"file": f"{folder.name}/{name}{suffix}"})
    known = [t for t in event.times if t]
    return {
        "id": event.name,
        "title": title(facts, event.times),
        "tone": mood,
        "tone_why": why,
        "from": min(known).isoformat() if known else None,
        "to": max(known).isoformat() if known else None,
        "photos": [
            {"name": p.name, "id": p.digest, "category": p.category, "taken_at": t.isoformat() if t else None}
            for p, t in zip(event.pictures, event.times, strict=True)
        ],
        "repeated": event.repeated,
        "best": [
            {
                "name": event.pictures[n].name,
                "why": f"quality {scores[n]:.2f}, {'the best' if not rank else 'unlike those before it'}",
                "offers": [vars(offer) for offer in offers(facts[n])],
            }
            for rank, n in enumerate(best)
        ],
        "pieces": pieces,
    }


def _pieces(
    event: Event, facts: list[Facts], best: list[int], mood: str, params: MomentsParams, predictor: Predictor
) -> list[tuple[str, np.ndarray | Cutout, dict[str, Any]]]:
    """Name, piece and what is said of it. Of each photo the first offer that something comes of; each function once."""
    inpainting = Path(params.inpainting) if params.inpainting else None
    made: list[tuple[str, np.ndarray | Cutout, dict[str, Any]]] = []
    lifted: list[tuple[str, Cutout]] = []
    used: set[str] = set()
    for n in best:
        picture = event.pictures[n]
        matted = Matted.of(picture.path, picture.category, predictor)
        seen = matted.subjects.all
        facts[n] = replace(
            facts[n],
            subjects=len(seen) if picture.category != "scenery" else None,
            subject_share=seen[0].area if seen else 0.0,
            haze=matted.haze() if picture.category == "scenery" else None,
        )
        if picture.category not in ("scenery", "cards"):
            cutout = finished(matted, Offer("cutout", 1.0, ""))
            if isinstance(cutout, Cutout):
                lifted.append((picture.name, cutout))
        if len(made) >= MOST_PIECES:
            continue
        for offer in offers(facts[n]):
            if offer.function in used:
                continue
            piece = finished(matted, offer, inpainting)
            if piece is not None:
                used.add(offer.function)
                about = {"function": offer.function, "choice": offer.choice, "photos": [picture.name], "why": offer.why}
                made.append((f"{offer.function}-{picture.digest[:8]}", piece, about))
                break
    if len(lifted) >= COLLAGE:
        why = f"{len(lifted)} subjects of this moment together, in its {mood} colours."
        about = {"function": "collage", "choice": mood, "photos": [name for name, _ in lifted][:6], "why": why}
        made.insert(0, ("collage", collage([cutout for _, cutout in lifted], mood), about))
    return made


def _remove_others(out: Path, names: set[str]) -> None:
    """Folders that an earlier run made and that are no moment any more; nothing that we did not make."""
    try:
        before = json.loads((out / "moments.json").read_text())["moments"]
    except (FileNotFoundError, ValueError, KeyError):
        return
    for moment in before:
        folder = out / Path(str(moment["id"])).name
        if moment["id"] not in names and (folder / "moment.json").is_file() and not _foreign_files(folder):
            shutil.rmtree(folder)
