"""The candidate as ExecuTorch and LiteRT files, made in the toolchains' own environments and kept by key.

The float network goes over as a `torch.export` program, so that the toolchains need nothing of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.data.images import load_rgb
from mm_core.export.formats.run import HERE, SUFFIX, call, python_of
from mm_core.layout import Layout
from mm_core.model.preprocess import prepare
from mm_core.records import digest_of, read_keyed, sha256_file, write_bytes, write_json
from mm_core.store import Store, fetch_blob


def convert(
    formats: Sequence[str], model: Path, calibration: Mapping[str, Sequence[str]], layout: Layout, store: Store
) -> dict[str, dict[str, dict[str, Any]]]:
    """Writes `layout.formats/<decoder>.int8.<suffix>` and a `.json` beside it; gives format → decoder → that record.

    `calibration`: decoder → sample ids. A record (`file`, `sha256`, `bytes`, `key`, `versions` and, for ExecuTorch,
    `undelegated`) comes after its file, and what it describes is kept: a killed run makes only the rest. The same
    model, photos and tools give the same bytes. Raises InputError where an environment is missing.
    """
    others = [name for name in formats if name != "onnx"]
    for name in others:
        python_of(name, layout.settings)
    records: dict[str, dict[str, dict[str, Any]]] = {}
    for name in others:
        versions = call(name, layout.settings, f"to_{name}.py", ["versions"])
        program = sha256_file(HERE / f"to_{name}.py")
        records[name] = {}
        for decoder, ids in calibration.items():
            key = digest_of(
                {"program": program, "model": sha256_file(model), "calibration": list(ids), "versions": versions}
            )
            record_file = layout.formats / f"{decoder}{SUFFIX[name]}.json"
            record = _kept(record_file, key)
            if record is None:
                record_file.unlink(missing_ok=True)
                record = {"file": f"{decoder}{SUFFIX[name]}", "key": key, "versions": versions}
                record |= _make(name, model, decoder, calibration_images(model, ids, store), layout)
                write_json(record_file, record)
            records[name][decoder] = record
    return records


def calibration_images(model: Path, ids: Sequence[str], store: Store) -> np.ndarray:
    """The photos as the model sees them, float32 (N,3,S,S)."""
    from mm_core.model.files import read_meta

    size = read_meta(model)["model"]["size"]
    return np.stack([prepare(load_rgb(fetch_blob(store, i), 4 * size), size) for i in ids])


def float_alphas(model: Path, decoder: str, images: np.ndarray) -> np.ndarray:
    """The float network's mattes: float32 (N,3,S,S) → (N,S,S)."""
    import torch

    served = _served(model, decoder)
    with torch.inference_mode():
        return np.concatenate([served(torch.from_numpy(image[None])).numpy()[:, 0] for image in images])


def _kept(record_file: Path, key: str) -> dict[str, Any] | None:
    record, file = read_keyed(record_file, key), record_file.with_suffix("")
    if record is None or not file.is_file() or sha256_file(file) != record["sha256"]:
        return None
    return record


def _make(name: str, model: Path, decoder: str, images: np.ndarray, layout: Layout) -> dict[str, Any]:
    import torch

    with tempfile.TemporaryDirectory(prefix="mm-convert-") as folder:
        program, calibration, made = (Path(folder) / part for part in ("float.pt2", "images.npy", "made"))
        torch.export.save(torch.export.export(_served(model, decoder), (torch.from_numpy(images[:1]),)), program)
        np.save(calibration, images)
        said = call(name, layout.settings, f"to_{name}.py", [program, calibration, made])
        data = made.read_bytes()
        target = layout.formats / f"{decoder}{SUFFIX[name]}"
        write_bytes(target, data)
    return said | {"sha256": sha256_file(target), "bytes": len(data)}


def _served(model: Path, decoder: str) -> Any:
    """What a phone runs of one decoder, in float: image → alpha in [0,1]."""
    import torch

    from mm_core.model.files import load_model

    net, _ = load_model(model)

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Only what this decoder needs: the others' weights would go into the program too.
            self.encoder, self.decoder = net.encoder, net.decoders[decoder]

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.decoder(self.encoder(image))[0])

    return Served().eval()
