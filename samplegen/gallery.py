"""A gallery as exported from a phone: events with times and places in EXIF, bursts, and photos without either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from samplegen.render import generate

KM_PER_DEGREE = 111.2


@dataclass(frozen=True)
class PlantedEvent:
    """Photos of one event."""

    start: datetime
    hours: float
    """Maximum time from the first photo to the last."""
    place: tuple[float, float]
    """Latitude and longitude in degrees."""
    categories: tuple[str, ...]
    """Categories of its photos, used in turn."""
    photos: int
    spread_km: float = 0.3
    """Standard deviation of the photos' positions."""


def write_gallery(
    folder: Path,
    events: Sequence[PlantedEvent],
    *,
    seed: int = 0,
    size: int = 192,
    unplaced: float = 0.15,
    bursts: float = 0.15,
) -> dict[str, int]:
    """Write JPEGs with names as from a camera; return file name → number of its event.

    The same arguments give the same bytes.

    Args:
        folder: Folder to write to.
        events: Events to generate.
        seed: Seed of all draws.
        size: Long side of the photos in pixels.
        unplaced: Share of photos without a place.
        bursts: Share of photos that are another frame of the previous one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 5])
    shots: list[tuple[datetime, int, str, int, int, tuple[float, float]]] = []
    for number, event in enumerate(events):
        offsets = np.sort(rng.uniform(0, event.hours * 3600, event.photos))
        offsets[0] = 0
        scene, variant = int(rng.integers(2**40)), 0
        when = event.start
        for index, offset in enumerate(offsets.tolist()):
            # A burst continues the scene one second later; otherwise a new scene starts.
            if index and rng.random() < bursts:
                variant, when = variant + 1, when + timedelta(seconds=1)
            else:
                scene, variant, when = int(rng.integers(2**40)), 0, event.start + timedelta(seconds=offset)
                category = event.categories[index % len(event.categories)]
            # Kilometres to degrees; a degree of longitude is shorter away from the equator.
            where = rng.normal(0, event.spread_km / KM_PER_DEGREE, 2)
            place = event.place[0] + where[0], event.place[1] + where[1] / np.cos(np.radians(event.place[0]))
            shots.append((when, number, category, scene, variant, (float(place[0]), float(place[1]))))
    # Write in order of time, with consecutive names.
    truth: dict[str, int] = {}
    for index, (when, number, category, scene, variant, place) in enumerate(sorted(shots)):
        name = f"IMG_{index:05d}.jpg"
        made = generate(category, scene, size=size, variant=min(variant, 3), aspect=4 / 3)
        (folder / name).write_bytes(jpeg(made.image, when, place if rng.random() >= unplaced else None))
        truth[name] = number
    return truth


def jpeg(
    photo: np.ndarray,
    when: datetime | None,
    place: tuple[float, float] | None,
    quality: int = 90,
    camera: str = "",
) -> bytes:
    """Return a photo uint8 (H, W, 3) as JPEG with local time, place and camera in EXIF."""
    exif = Image.Exif()
    if camera:
        exif[ExifTags.Base.Model] = camera
    if when:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"{when:%Y:%m:%d %H:%M:%S}"
    if place:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        names = (ExifTags.GPS.GPSLatitudeRef, ExifTags.GPS.GPSLatitude, "NS"), (
            ExifTags.GPS.GPSLongitudeRef, ExifTags.GPS.GPSLongitude, "EW",
        )  # fmt: skip
        for value, (hemisphere, tag, letters) in zip(place, names, strict=True):
            # EXIF stores degrees, minutes and seconds with a hemisphere letter.
            degrees, rest = divmod(abs(value), 1)
            minutes, rest = divmod(rest * 60, 1)
            gps[hemisphere] = letters[value < 0]
            gps[tag] = (degrees, minutes, round(rest * 60, 4))
    stream = BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=quality, exif=exif)
    return stream.getvalue()
