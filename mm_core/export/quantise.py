"""Quantise trained weights to one static int8 ONNX file per decoder.

Post-training quantisation as in Jacob et al. 2018 (arXiv:1712.05877): int8 weights per output channel, int8 activations
per tensor with ranges from training photos, in QDQ form. Signed activations give the same values on every CPU;
unsigned ones times signed weights saturate 16-bit sums on x86 without VNNI (ADR 0033). Shapes are fixed to one image
of S × S, as the delegates of phones require.

Four things reduce the error (ADR 0051): biases are corrected (`mm_core.export.bias_correction`), ranges have the least
squared error (`ranges`), the last convolution stays in float and is fitted to the int8 features (`last_layer`), and a
decoder that still has a large error in a category keeps its first convolutions in float (`float_layers`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import onnx
import onnx.utils
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from mm_core.core.code_digest import code_digest
from mm_core.core.errors import MattingError
from mm_core.core.records import (
    DECODERS,
    Report,
    digest_of,
    read_keyed,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
)
from mm_core.export.bias_correction import correct_biases
from mm_core.export.calibration import calibration_ids, calibration_images, categories_of
from mm_core.export.float_graph import float_graph, tool_versions
from mm_core.export.float_layers import ladder, worst
from mm_core.export.last_layer import fit_last_layer
from mm_core.export.observed import Observed, observe
from mm_core.export.ranges import write_ranges
from mm_core.export.runtime import CHOICE, SUFFIX, open_session
from mm_core.model.exporters import quiet
from mm_core.storage.retry import disk_faults_of

if TYPE_CHECKING:
    # For type checkers alone, so that the code of the catalog is no part of the content key.
    from mm_core.storage.run import StorageRun

RANGES = "ranges.json"
"""File of the activations' ranges while a decoder is quantised."""
TORCH_TOLERANCE = 1e-3
"""Largest difference of the float ONNX graph's alpha from torch's, absolute."""


def quantise(run: StorageRun, model: Path, out_dir: Path, report: Report) -> Report:
    """Write `<decoder>.int8.onnx` for each decoder, and `quantised.json` (digests, calibration ids, errors).

    The same model and calibration photos give the same bytes, and a finished result is kept. `quantised.json` is
    written last; without it, or with another key in it, all files are made again.

    Args:
        run: Params, workspace, storage and progress.
        model: The trained weights.
        out_dir: Folder of the results.
        report: Receives `quantise/<decoder>/diff_mse`, `…/diff_max` (int8 against float alpha on the calibration
            photos), `…/bytes`, and a table.

    Returns:
        The report.

    Raises:
        NothingToTrainOn: The snapshot has no training photo.
    """
    params, snapshot = run.params.export, run.layout.snapshot
    chosen = {decoder: calibration_ids(snapshot, decoder, params.calibration_images) for decoder in DECODERS}
    # The key covers all inputs of the files: code, weights, photos, parameters and tools.
    key = digest_of(
        {
            "code": code_digest(__name__),
            "model": sha256_file(model),
            "calibration": chosen,
            "params": {
                "calibration_images": params.calibration_images,
                "max_int8_mse": params.max_int8_mse,
            },
            "versions": tool_versions(),
        }
    )
    record_file = out_dir / "quantised.json"
    record = _kept(record_file, key)
    if record is None:
        # Without its record, an interrupted run does not pass for a finished one.
        record_file.unlink(missing_ok=True)
        categories = {decoder: categories_of(snapshot, ids) for decoder, ids in chosen.items()}
        record = {
            "key": key,
            "model": sha256_file(model),
            "calibration": chosen,
            "versions": tool_versions(),
            "decoders": _make_all(run, model, chosen, categories, out_dir),
        }
        write_json(record_file, record)
    report.facts["quantised"] = {d: row["sha256"] for d, row in record["decoders"].items()}
    report.tables["quantisation"] = [{"decoder": d, **row} for d, row in record["decoders"].items()]
    for decoder, row in record["decoders"].items():
        for name in ("diff_mse", "diff_max", "bytes"):
            report.metrics[f"quantise/{decoder}/{name}"] = float(row[name])
    return report


class Quantised(TypedDict):
    """The costs of int8 for one decoder."""

    diff_mse: float
    """Mean squared difference from float, of the worst category."""
    diff_max: float
    float_convolutions: list[int]
    """Numbers of the convolutions in float, in the order of execution."""
    steps: list[int]
    """How many of the first convolutions may stay in float, in the order of trial."""


class QuantisedFile(Quantised):
    """One decoder's int8 file."""

    sha256: str
    bytes: int
    calibration_images: int


class QuantisedRecord(TypedDict):
    """The content of `quantised.json`."""

    key: str
    """Digest of code, weights, photos, parameters and tools."""
    model: str
    """Digest of the float weights."""
    calibration: dict[str, list[str]]
    """Decoder → ids of the calibration photos."""
    versions: dict[str, str]
    decoders: dict[str, QuantisedFile]


def _kept(record_file: Path, key: str) -> QuantisedRecord | None:
    record = cast(QuantisedRecord | None, read_keyed(record_file, key))
    if record is None:
        return None
    for decoder, row in record["decoders"].items():
        file = record_file.with_name(decoder + SUFFIX)
        if not file.is_file() or sha256_file(file) != row["sha256"]:
            return None
    return record


def _make_all(
    run: StorageRun, model: Path, chosen: dict[str, list[str]], categories: dict[str, list[str]], out_dir: Path
) -> dict[str, QuantisedFile]:
    run.progress("quantise", 0, len(DECODERS) + 1)
    # One graph serves all decoders; each decoder's part is cut from it.
    graph, check = float_graph(model, run.layout.graphs)
    # The graph's shapes are fixed, so the input size can be read from it.
    size = graph.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    run.progress("quantise", 1, len(DECODERS) + 1)
    rows: dict[str, QuantisedFile] = {}
    for done, decoder in enumerate(DECODERS, start=2):
        images = calibration_images(chosen[decoder], size, run.store)
        row, data = quantise_graph(
            _extract(graph, decoder), images, categories[decoder], run.params.export.max_int8_mse, check(decoder)
        )
        rows[decoder] = {
            **row,
            "sha256": sha256_bytes(data),
            "bytes": len(data),
            "calibration_images": len(images),
        }
        write_bytes(out_dir / f"{decoder}{SUFFIX}", data)
        run.progress("quantise", done, len(DECODERS) + 1)
    return rows


def _extract(graph: onnx.ModelProto, decoder: str) -> onnx.ModelProto:
    """Return the part of the graph for one decoder and the choice, with the output `alpha` and without metadata."""
    subgraph = onnx.utils.Extractor(graph).extract_model(["image"], [decoder, CHOICE])
    for node in subgraph.graph.node:
        node.output[:] = ["alpha" if name == decoder else name for name in node.output]
    subgraph.graph.output[0].name = "alpha"
    return _stripped(subgraph)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove metadata with paths, versions or times: they would change the bytes from machine to machine."""
    graph = model.graph
    for element in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        element.ClearField("metadata_props")
        element.ClearField("doc_string")
    graph.name = "matting"
    return model


def quantise_graph(
    graph: onnx.ModelProto,
    images: np.ndarray,
    categories: Sequence[str],
    max_mse: float,
    reference: tuple[np.ndarray, np.ndarray],
) -> tuple[Quantised, bytes]:
    """Quantise the graph of one decoder.

    The first convolutions stay in float, in growing number, until every category's mean squared difference from float
    is at most `max_mse`. If none of the steps reaches it, the closest file is returned.

    Args:
        graph: The float ONNX graph with outputs `alpha` and `decoder`.
        images: Prepared calibration photos, float32 (N, 3, S, S).
        categories: The category of each photo.
        max_mse: The allowed mean squared difference.
        reference: torch's image and alpha, to check the graph with.

    Returns:
        The costs `diff_mse` (worst category), `diff_max`, `float_convolutions` (their numbers) and `steps` (how many
        may be tried); and the file as bytes.
    """
    best: tuple[Quantised, bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="mm-quantise-") as name, disk_faults_of(Path(name)), quiet():
        folder = Path(name)
        # Exported graph, simplified float graph, int8 graph.
        plain, ready, made = folder / "plain.onnx", folder / "float.onnx", folder / "int8.onnx"
        onnx.save(graph, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        # The simplified float graph must still agree with torch before it is quantised.
        _require_close(ready, reference)
        simplified = onnx.load(ready)
        calibrated = _Calibrated(simplified, images, observe(simplified, images))
        write_ranges(folder / RANGES, calibrated.observed)
        steps = ladder(convolution_weights(simplified.graph))
        # Start with all convolutions but the last in int8; go on only if the error is too large.
        for kept in steps:
            data = _stripped(calibrated.int8(kept, folder)).SerializeToString(deterministic=True)
            made.write_bytes(data)
            difference = _alphas(made, images) - calibrated.observed.alphas
            row: Quantised = {
                "diff_mse": worst(difference, categories),
                "diff_max": float(np.abs(difference).max()),
                "float_convolutions": list(range(kept)),
                "steps": steps,
            }
            # Keep the closest file so far.
            if best is None or row["diff_mse"] < best[0]["diff_mse"]:
                best = row, data
            if row["diff_mse"] <= max_mse:
                break
    assert best is not None
    return best[0], best[1]


@dataclass(frozen=True)
class _Calibrated:
    """A decoder's float graph with its statistics, from which int8 graphs are made."""

    model: onnx.ModelProto
    images: np.ndarray
    observed: Observed

    def int8(self, kept: int, folder: Path) -> onnx.ModelProto:
        """Return the int8 graph with the first `kept` convolutions and the last in float; the folder has the ranges."""
        source, made = folder / "corrected.onnx", folder / "quantised.onnx"
        onnx.save(correct_biases(self.model, self.observed, kept), source)
        quantize_static(
            str(source),
            str(made),
            None,
            quant_format=QuantFormat.QDQ,
            # Sorted: the default is a set, and its order changes the bytes from run to run.
            op_types_to_quantize=sorted({*QLinearOpsRegistry, *QDQRegistry}),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted({*float_nodes(self.model.graph, kept), *choosing_nodes(self.model.graph)}),
            # With the ranges in this file, onnxruntime makes no pass over the photos.
            calibration_cache_path=str(folder / RANGES),
        )
        quantised = onnx.load(made)
        fit_last_layer(quantised, self.model, self.observed, self.images)
        return quantised


def convolution_weights(graph: onnx.GraphProto) -> list[int]:
    """Return the number of weights of each convolution, in the order of execution."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return [sizes[node.input[1]] for node in graph.node if node.op_type == "Conv"]


def float_nodes(graph: onnx.GraphProto, kept: int) -> list[str]:
    """Return the names of nodes in float: the first `kept` convolutions and the last, with their followers."""
    # The exporter numbers nodes in the order of execution; simplification may change the numbers in the names.
    starts = [i for i, node in enumerate(graph.node) if node.op_type == "Conv"]
    names = [node.name for node in graph.node]
    ends = [*starts[1:], len(names)]
    return [name for n in sorted({*range(kept), len(starts) - 1}) for name in names[starts[n] : ends[n]]]


def choosing_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of nodes that only the choice of a decoder needs; they are cheap and stay in float."""
    # Output name → the node that computes it.
    makers = {name: node for node in graph.node for name in node.output}

    def behind(output: str) -> set[str]:
        # All nodes from which a path leads to the output.
        nodes, waiting = set(), [output]
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and node.name not in nodes:
                nodes.add(node.name)
                waiting += node.input
        return nodes

    return sorted(behind(CHOICE) - behind("alpha"))


def _require_close(float_file: Path, reference: tuple[np.ndarray, np.ndarray]) -> None:
    image, alpha = reference
    error = float(np.abs(_alphas(float_file, image)[0] - alpha[0, 0]).max())
    # Written as `not <=`, so that NaN fails too.
    if not error <= TORCH_TOLERANCE:
        raise MattingError(
            f"the exported graph strays {error:.4f} from torch's alpha: an operator was translated wrongly"
        )


def _alphas(file: Path, images: np.ndarray) -> np.ndarray:
    """Return a file's mattes: float32 (N, 3, S, S) → (N, S, S)."""
    session = open_session(file)
    return np.stack([np.asarray(session.run(["alpha"], {"image": image[None]})[0])[0, 0] for image in images])
