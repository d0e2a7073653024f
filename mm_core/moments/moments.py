"""Make moments of a gallery: its events with their best photos and finished pieces (Matting Moments, section 2.3).

Each event has distinct photos, the best of them by quality and variety, a title, a tone, and a reason for each piece.
Results are cached: a new photo only changes its own event.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from mm_core.core.code_digest import code_digest
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
from mm_core.moments.moments_file import MomentEntry, PieceEntry
from mm_core.moments.pieces import Matted, collage, file_of, finished
from mm_core.moments.story import title, tone
from mm_core.moments.strategy import Facts, Offer, offers
from mm_core.storage.run import StorageRun

MOST_PIECES = 3
"""Largest number of finished pieces per moment in addition to the collage."""
_IN_THE_MAKING = "in the making"
"""Key of a moment with unfinished pieces."""
COLLAGE = 2
"""Least number of cutouts in a collage."""


@dataclass(frozen=True)
class Event:
    """Photos of one event."""

    pictures: list[Picture]
    """Distinct photos, by time."""
    times: list[datetime | None]
    repeated: int
    """Number of photos that repeat one of them."""

    @property
    def name(self) -> str:
        """Name of the moment's folder; stable while the first photo stays the same."""
        return f"{self.times[0]:%Y-%m-%d}-{self.pictures[0].digest[:8]}" if self.times[0] else "undated"


def events_of(gallery: Gallery, params: MomentsParams, bits: int) -> list[Event]:
    """Return events with at least `least` distinct photos, by time; undated photos form the last one."""
    pictures = gallery.pictures
    times = [time_of(p.taken_at, p.path.name) for p in pictures]
    places = np.array([p.place for p in pictures], float).reshape(-1, 2)
    labels = cluster(
        seconds_of(times), places, [p.camera for p in pictures],
        gap_hours=params.gap_hours, radius_km=params.radius_km, speed_kmh=params.speed_kmh,
    )  # fmt: skip
    events = []
    # Label -1 holds the undated photos.
    for label in [*range(labels.max(initial=-1) + 1), -1]:
        members = sorted(np.flatnonzero(labels == label), key=lambda n: (times[n] or datetime.min, pictures[n].name))
        kept = [members[n] for n in distinct([pictures[m] for m in members], bits)]
        if len(kept) >= params.least:
            events.append(Event([pictures[n] for n in kept], [times[n] for n in kept], len(members) - len(kept)))
    return events


def distinct(pictures: Sequence[Picture], bits: int) -> list[int]:
    """Return the positions of the best photo of each set of repetitions: saved again, or frames of a burst."""
    hashed = Hashed.of(range(len(pictures)), [p.phash for p in pictures], [p.landmarks for p in pictures])
    looks: dict[int, np.ndarray] = {}

    def look(n: int) -> np.ndarray:
        if n not in looks:
            looks[n] = glance(load_rgb(pictures[n].path, LOOK_SIDE))
        return looks[n]

    # Union-find: `root[n]` links a photo to another one of its set.
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
            # Cheap comparison first; pixels are read only if the files differ.
            if same or same_picture(look(n), look(other)) or same_scene(look(n), look(other)):
                root[leader(n)] = leader(other)
    sets: dict[int, list[int]] = {}
    for n in range(len(pictures)):
        sets.setdefault(leader(n), []).append(n)
    # The best photo of each set, ties to the earlier one.
    return sorted(max(members, key=lambda n: (pictures[n].quality, -n)) for members in sets.values())


def make_moments(
    run: StorageRun, gallery: Gallery, out: Path, report: Report, *, predictor: Predictor | None, model: str
) -> Report:
    """Write `out/moments.json` and a folder per moment with its pieces; unchanged moments are kept.

    Folders of vanished moments are removed, unless they hold foreign files. moments.json is written last, so after a
    kill the next run continues.

    Args:
        run: Params and progress.
        gallery: The photos.
        out: Folder of the results.
        report: Receives counts and a table of moments.
        predictor: The matting model; None gives moments without pieces.
        model: Name of the model, stored with the pieces.

    Returns:
        The report.

    Raises:
        InputError: A folder or file of another origin would be replaced; nothing has been written then.
    """
    moments, counts = [], {"new": 0, "kept": 0}
    params = run.params.moments
    # The same near-duplicate threshold as at ingest.
    events = events_of(gallery, params, run.params.ingest.near_duplicate_bits)
    # The key covers everything that a moment depends on.
    code = code_digest(__name__)
    keys = [
        digest_of([code, model, params.model_dump(mode="json"), [(p.digest, p.name, p.category) for p in e.pictures]])
        for e in events
    ]
    kept = [read_keyed(out / event.name / "moment.json", key) for event, key in zip(events, keys, strict=True)]
    to_write = [out / event.name for event, moment in zip(events, kept, strict=True) if moment is None]
    check_outputs([out / "moments.json", *to_write], [p.path for p in gallery.pictures], is_ours=_is_ours)
    for number, (event, key, moment) in enumerate(zip(events, keys, kept, strict=True)):
        if moment is None:
            moment = _moment(event, out / event.name, params, predictor, model)
            write_json(out / event.name / "moment.json", moment | {"key": key})
            counts["new"] += 1
        else:
            counts["kept"] += 1
        moments.append({name: value for name, value in moment.items() if name != "key"})
        run.progress("moments", number + 1, len(events))
    # Remove only after all writing: a killed run leaves too much rather than too little.
    _remove_others(out, {event.name for event in events})
    write_json(out / "moments.json", {"model": model, "moments": moments, "unreadable": gallery.unreadable})
    in_moments = sum(len(m["photos"]) + m["repeated"] for m in moments)
    report.metrics |= {
        "moments/photos": len(gallery.pictures),
        "moments/looked_at": gallery.looked_at,
        "moments/unreadable": len(gallery.unreadable),
        "moments/moments": len(moments),
        "moments/made": counts["new"],
        "moments/kept": counts["kept"],
        "moments/photos_in_moments": in_moments,
        "moments/pieces": sum(len(m["pieces"]) for m in moments),
    }
    report.facts |= {"out": str(out), "model": model}
    report.tables["moments"] = [
        {"title": m["title"], "tone": m["tone"], "photos": len(m["photos"]), "pieces": len(m["pieces"])}
        for m in moments
    ]
    report.pictures |= {m["title"]: str(out / m["pieces"][0]["file"]) for m in moments if m["pieces"]}
    report.tables["unreadable"] = list(gallery.unreadable)
    return report


def _is_ours(path: Path) -> bool:
    """Return whether an earlier run made this moment's folder or this `moments.json`."""
    if path.is_dir():
        return not _foreign_files(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "moments" in content


def _foreign_files(folder: Path) -> list[Path]:
    """Return the foreign files of a moment's folder: all except `moment.json` and the pieces that it names.

    After a killed run the names of the pieces are unknown; the whole folder then counts as ours.
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


def _moment(event: Event, folder: Path, params: MomentsParams, predictor: Predictor | None, model: str) -> MomentEntry:
    """Make one moment; write its pieces to `folder` and return its JSON values."""
    # Pieces of an older version of the moment are removed.
    if folder.exists():
        shutil.rmtree(folder)
    # Written before the pieces, so that the folder of a killed run is recognised as ours.
    write_json(folder / "moment.json", {"key": _IN_THE_MAKING})
    facts = [Facts.of(p.category, p.found) for p in event.pictures]
    scores = np.array([p.quality for p in event.pictures])
    kinds = [p.category or "unknown" for p in event.pictures]
    best = representatives(scores, np.stack([p.vector for p in event.pictures]), kinds, params.best)
    # Title and tone use all photos of the event; pieces use the best ones.
    mood, why = tone(facts, event.times)
    pieces: list[PieceEntry] = []
    if predictor is not None:
        for name, piece, description in _pieces(event, facts, best, mood, params, predictor):
            suffix, data = file_of(piece, model=model, function=description["function"])
            write_bytes(folder / f"{name}{suffix}", data)
            pieces.append({**description, "file": f"{folder.name}/{name}{suffix}"})
    # Undated photos do not limit the period.
    dated = [t for t in event.times if t]
    return {
        "id": event.name,
        "title": title(facts, event.times),
        "tone": mood,
        "tone_why": why,
        "from": min(dated).isoformat() if dated else None,
        "to": max(dated).isoformat() if dated else None,
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
) -> list[tuple[str, np.ndarray | Cutout, PieceEntry]]:
    """Return name, piece and description; each photo gives its first successful offer, and each effect is used once."""
    inpainting = Path(params.inpainting) if params.inpainting else None
    pieces: list[tuple[str, np.ndarray | Cutout, PieceEntry]] = []
    lifted: list[tuple[str, Cutout]] = []
    # Variety within a moment: each effect is used once.
    used: set[str] = set()
    for n in best:
        picture = event.pictures[n]
        matted = Matted.of(picture.path, picture.category, predictor)
        seen = matted.subjects.all
        # With the matte more is known, so the offers are ranked again.
        facts[n] = replace(
            facts[n],
            subjects=len(seen) if picture.category != "scenery" else None,
            subject_share=seen[0].area if seen else 0.0,
            haze=matted.haze() if picture.category == "scenery" else None,
        )
        # Cutouts of all suitable photos are collected for the collage.
        if picture.category not in ("scenery", "cards"):
            cutout = finished(matted, Offer("cutout", 1.0, ""))
            if isinstance(cutout, Cutout):
                lifted.append((picture.name, cutout))
        if len(pieces) >= MOST_PIECES:
            continue
        for offer in offers(facts[n]):
            if offer.function in used:
                continue
            piece = finished(matted, offer, inpainting)
            if piece is not None:
                used.add(offer.function)
                description: PieceEntry = {
                    "function": offer.function,
                    "choice": offer.choice,
                    "photos": [picture.name],
                    "why": offer.why,
                }
                pieces.append((f"{offer.function}-{picture.digest[:8]}", piece, description))
                break
    if len(lifted) >= COLLAGE:
        why = f"{len(lifted)} subjects of this moment together, in its {mood} colours."
        description: PieceEntry = {
            "function": "collage",
            "choice": mood,
            "photos": [name for name, _ in lifted][:6],
            "why": why,
        }
        pieces.insert(0, ("collage", collage([cutout for _, cutout in lifted], mood), description))
    return pieces


def _remove_others(out: Path, names: set[str]) -> None:
    """Remove folders of moments that no longer exist; only folders that an earlier run made."""
    try:
        before = [str(moment["id"]) for moment in json.loads((out / "moments.json").read_text())["moments"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return
    for name in before:
        folder = out / Path(name).name
        if name not in names and (folder / "moment.json").is_file() and not _foreign_files(folder):
            shutil.rmtree(folder)
