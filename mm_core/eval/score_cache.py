"""Keep the scores of every model on every photo, so that a later cycle scores only new models and new photos.

A score depends on the model's weights, the photo, its true matte, the decoder and the size of the comparison. It also
depends on the code, the packages and the processor: int8 kernels round differently with other instructions. All of them
are part of the key, so a kept score is the one that would be computed again, up to rounding in another batch. Champion,
anchor and stages that passed their start weights on are therefore free, also while the eval set grows.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.code_digest import code_digest
from mm_core.core.records import digest_of, write_bytes
from mm_core.eval.metrics import PER_IMAGE
from mm_core.eval.scoring import Scores

CODE = ("mm_core.eval.scoring", "mm_core.model.files", "mm_core.model.predict", "mm_core.export.runtime")
"""Modules whose code the scores depend on; names, because this room must not import the room of exports."""
PACKAGES = ("torch", "onnxruntime", "numpy", "scipy", "opencv-python-headless", "pillow")
KEPT = 32
"""Models whose scores are kept; those that were used longest ago are removed."""
_SCHEMA = pa.schema(
    [("photo", pa.string()), *((name, pa.float64()) for name in PER_IMAGE if name != "fcurve")]
    + [("fcurve", pa.list_(pa.float64()))]
)


class ScoreCache:
    """Scores by identity of a model, in one file per model."""

    def __init__(self, folder: Path, max_side: int) -> None:
        """Open the cache of a workspace for one size of the comparison."""
        self.folder = folder
        versions = {name: version(name) for name in PACKAGES}
        self._context = [code_digest(*CODE), versions, _processor(), max_side]

    def read(self, model: str) -> dict[str, Scores]:
        """Return `photo_key` → scores of a model; empty for an unknown one or a damaged file.

        Args:
            model: Digest of everything that the model's mattes depend on beside the photo.
        """
        path = self._path(model)
        try:
            table = pq.read_table(path, schema=_SCHEMA, page_checksum_verification=True)
            path.touch()  # the times tell which models were used last
        except (OSError, pa.ArrowException):
            return {}
        columns = {name: table[name].to_numpy() for name in PER_IMAGE}
        photos = table["photo"].to_pylist()
        return {photo: {name: columns[name][n] for name in PER_IMAGE} for n, photo in enumerate(photos)}

    def write(self, model: str, scores: Mapping[str, Scores]) -> None:
        """Replace the scores of a model, and remove those of models that were not used for long."""
        rows = [{"photo": photo, **of_photo} for photo, of_photo in scores.items()]
        stream = BytesIO()
        columns = {name: [row[name] for row in rows] for name in _SCHEMA.names}
        pq.write_table(pa.table(columns, schema=_SCHEMA), stream, compression="zstd", write_page_checksum=True)
        write_bytes(self._path(model), stream.getvalue())
        by_age = sorted(self.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in by_age[KEPT:]:
            path.unlink(missing_ok=True)

    def _path(self, model: str) -> Path:
        return self.folder / f"{digest_of([self._context, model])}.parquet"


@cache
def _processor() -> str:
    """Return the lines on which the choice of a kernel depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
