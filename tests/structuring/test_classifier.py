"""The packaged classifier in onnxruntime: timm's values, a kept graph, and no torch where it is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mm_core.model.packaged import load_packaged_classifier
from mm_core.structuring import classifier_graph as graphs
from mm_core.structuring.classifier import ClassifierTags
from mm_core.structuring.classifier_graph import SIDE, classifier_graph
from mm_core.structuring.imagenet import class_names
from tests.structuring.test_tags import photo

ENCODER = "tf_efficientnet_lite0"


def test_tags_of_a_generated_photo_are_imagenet_classes(tmp_path: Path) -> None:
    found = ClassifierTags(ENCODER, 3, tmp_path).run([photo((215, 30, 40), 0), photo((40, 150, 50), 1)])
    for one in found:
        assert one.vector is not None and one.vector.shape == (1280,)
        assert np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-5)
        names = one.texts["tags"].split("; ")
        assert len(names) == 3 and set(names) <= set(class_names())
        chances = [one.numbers[f"tag/{name}"] for name in names]
        assert chances == sorted(chances, reverse=True)


def test_the_graph_computes_what_timm_computes_for_any_number_of_photos(tmp_path: Path) -> None:
    model: Any = load_packaged_classifier(ENCODER)
    session = onnxruntime.InferenceSession(classifier_graph(ENCODER, tmp_path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        outputs = session.run(["logits", "vectors"], {"images": images.numpy()})
        logits, vectors = (np.asarray(output) for output in outputs)
        with torch.inference_mode():
            # Lite0 was trained with mean and standard deviation 0.5.
            features = model.forward_features(2 * images - 1)
            pooled = model.forward_head(features, pre_logits=True)
        np.testing.assert_allclose(logits, model.classifier(pooled).detach(), atol=2e-4)
        np.testing.assert_allclose(vectors, torch.nn.functional.normalize(pooled, dim=1), atol=1e-5)


def test_a_damaged_graph_is_exported_again(tmp_path: Path) -> None:
    whole = classifier_graph(ENCODER, tmp_path)
    (kept,) = tmp_path.iterdir()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(damaged)
    assert classifier_graph(ENCODER, tmp_path) == whole == kept.read_bytes()


def test_a_kept_graph_is_not_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier_graph(ENCODER, tmp_path)
    monkeypatch.setattr(graphs, "_export", lambda encoder: pytest.fail("exported again"))
    assert classifier_graph(ENCODER, tmp_path) == whole


def test_photos_are_classified_without_torch(tmp_path: Path) -> None:
    """Its import costs more than the classification of hundreds of photos."""
    classifier_graph(ENCODER, tmp_path)
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from mm_core.structuring.classifier import ClassifierTags\n"
        "from mm_core.structuring.rows import Photo\n"
        "rgb = np.full((40, 50, 3), 90, np.uint8)\n"
        f"ClassifierTags({ENCODER!r}, 3, Path(sys.argv[1])).run([Photo('s', None, Path('unused'), rgb, rgb)])\n"
        "print(sorted({'torch', 'timm', 'open_clip', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and not done.stderr
