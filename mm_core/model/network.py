"""The matting network: one shared encoder, three decoders (Matting Moments, section 2.1), logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import DECODERS
from mm_core.model import u2net
from mm_core.model.packaged import load_packaged_weights
from mm_core.model.torchvision_shim import ensure_torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet's photos, in [0, 1]; the ones that U2-Net was published with."""
DETAIL_CHANNELS = 8
"""Full-resolution features of the image itself, for edges that the encoder's first stride has lost."""


def conv_bn_relu(channels: int, out: int, kernel: int = 3) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU: folds into one layer when quantised."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


class Normalization(nn.Module):
    """Channel statistics of the encoder's pretraining, applied inside the network.

    Because the network takes plain RGB in [0, 1], its normalisation travels with the weights into every exported file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        """Args: mean, std: three values each, of RGB in [0, 1]."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise RGB (B, 3, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


class TimmEncoder(nn.Module):
    """A timm backbone with `features_only`, preceded by a full-resolution detail branch.

    `forward`: (B,3,S,S) → features fine→coarse; `channels[i]` and `reductions[i]` describe the i-th.
    """

    channels: list[int]
    reductions: list[int]

    def __init__(self, body: nn.Module):
        super().__init__()
        info: Any = body.feature_info
        if sorted(set(info.reduction())) != list(info.reduction()):
            raise InputError(
                "params.yaml: model.encoder: its features do not halve step by step (a plain vision transformer?); "
                "name a convolutional or hierarchical timm model"
            )
        self.body = body
        self.detail = conv_bn_relu(3, DETAIL_CHANNELS)
        self.channels = [DETAIL_CHANNELS, *info.channels()]
        self.reductions = [1, *info.reduction()]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.detail(images), *self.body(images)]


class LightDecoder(nn.Module):
    """A narrow U-shaped decoder: from the coarsest feature up, each level adds a 1×1 view of the encoder's.

    `width` is the number of channels at stride 4, doubled below stride 8, halved with each level above.
    `forward` gives a list of one logit map at the resolution of the finest feature.
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], width: int):
        super().__init__()
        widths = [_width_at(reduction, width) for reduction in reductions]
        # No norm here: at stride 32 a single small image would leave one value per channel.
        self.bottom = nn.Sequential(nn.Conv2d(channels[-1], widths[-1], 1), nn.ReLU(inplace=True))
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], widths[-1], 1))
        self.reduce = nn.ModuleList()
        self.skip = nn.ModuleList()
        self.fuse = nn.ModuleList()
        for level in range(len(channels) - 2, -1, -1):
            here, below = widths[level], widths[level + 1]
            self.reduce.append(conv_bn_relu(below, here, 1) if below != here else nn.Identity())
            # A wide skip is thinned first; a thin one is used as it is.
            thin = channels[level] <= here
            self.skip.append(nn.Identity() if thin else conv_bn_relu(channels[level], here, 1))
            self.fuse.append(conv_bn_relu(here + min(channels[level], here), here))
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = self.bottom(features[-1])
        x = x + self.context(x)
        for feature, reduce, skip, fuse in zip(features[-2::-1], self.reduce, self.skip, self.fuse, strict=True):
            x = fuse(torch.cat((u2net.resize_like(reduce(x), feature), skip(feature)), 1))
        return [self.head(x)]


def _width_at(reduction: int, width: int) -> int:
    if reduction >= 8:
        return 2 * width
    return max(4, width * reduction // 4)


class MattingNet(nn.Module):
    """One shared encoder, three decoders (saliency, portrait, scenery); logits out.

    Random weights; `build_model` begins from a seed and pretrained files, `files.load_model` from a saved model.
    """

    normalize: Normalization
    encoder: nn.Module
    decoders: nn.ModuleDict
    channels: list[int]
    """Channels of each feature, fine→coarse."""
    reductions: list[int]
    """Stride of each feature against the input, fine→coarse."""
    chooser: nn.Linear
    """Tells which decoder a photo of unknown category is for. Untrained it knows nothing: then the first one serves."""
    needed: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Of a batch's decoders, those that any of the processes sharing the batch needs, in one order: they must take the
    same steps, rows or not."""

    def __init__(self, config: ModelParams, body: nn.Module | None = None):
        """`body`: a timm backbone with features_only, where one with pretrained weights is at hand."""
        super().__init__()
        self.config = config
        encoder: u2net.U2Encoder | TimmEncoder
        if config.encoder in u2net.NAMES:
            if config.size < 64:
                # Below, a block pools one photo to one pixel, which its batch norm cannot train on.
                raise InputError(f"params.yaml: model.size: {config.encoder} needs at least 64, not {config.size}")
            encoder = u2net.U2Encoder(config.encoder)
            decoders: dict[str, nn.Module] = {name: u2net.U2Decoder(config.encoder) for name in DECODERS}
            self.normalize = Normalization()
        else:
            body = body or create_body(config.encoder)
            encoder = TimmEncoder(body)
            self.normalize = normalization_of(body)
            decoders = {name: LightDecoder(encoder.channels, encoder.reductions, config.width) for name in DECODERS}
        self.encoder, self.decoders = encoder, nn.ModuleDict(decoders)
        self.channels, self.reductions = encoder.channels, encoder.reductions
        self.chooser = nn.Linear(self.channels[-1], len(DECODERS))
        nn.init.zeros_(self.chooser.weight)
        nn.init.zeros_(self.chooser.bias)

    @property
    def bottleneck_channels(self) -> int:
        return self.channels[-1]

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """List the parameters that pretrained weights gave: the timm backbone's; none where it began at random."""
        if self.config.pretrained and isinstance(self.encoder, TimmEncoder):
            return list(self.encoder.body.parameters())
        return []

    def encode(self, images: Tensor) -> list[Tensor]:
        """RGB (B,3,S,S) in [0,1] → features fine→coarse; the last is the bottleneck. S a multiple of 32."""
        return self.encoder(self.normalize(images))

    def decode(self, features: list[Tensor], decoder: str) -> list[Tensor]:
        """Logits, each (B,1,S,S): the main one first, then U2-Net's six side outputs where it is one."""
        return self.decoders[decoder](features)

    def route(self, features: list[Tensor], decoders: Sequence[str]) -> list[Tensor]:
        """Decodes a mixed batch: each decoder on its own rows, scattered back to the batch's order.

        `decoders`: one name per row. Result as of `decode`.
        """
        if len(decoders) != features[0].shape[0]:
            raise ValueError(f"{len(decoders)} decoder names for a batch of {features[0].shape[0]}")
        rows: dict[str, list[int]] = {name: [] for name in self.needed(decoders)} if self.needed else {}
        for row, name in enumerate(decoders):
            rows.setdefault(name, []).append(row)
        if len(rows) == 1:
            return self.decode(features, next(iter(rows)))
        device = features[0].device
        parts: list[list[Tensor]] = []
        for name, members in rows.items():
            index = torch.tensor(members, dtype=torch.long, device=device)
            parts.append(self.decode([feature.index_select(0, index) for feature in features], name))
        order = [row for members in rows.values() for row in members]
        back = torch.argsort(torch.tensor(order, device=device))
        return [torch.cat(maps).index_select(0, back) for maps in zip(*parts, strict=True)]

    @torch.no_grad()
    def copy_first_decoder(self) -> None:
        """Give the other decoders the weights and statistics of the first one."""
        first, *others = self.decoders.values()
        for decoder in others:
            decoder.load_state_dict(first.state_dict())

    def choice(self, features: list[Tensor]) -> Tensor:
        """Logits (B, 3) of `DECODERS`, from the bottleneck. Their gradient stays in the chooser: mattes are not
        traded for it (docs/decisions/0016-unknown-category.md)."""
        pooled = features[-1].detach().float().mean((2, 3))
        return self.chooser(F.layer_norm(pooled, pooled.shape[-1:]))

    def chosen(self, features: list[Tensor]) -> list[str]:
        """Of each row the decoder that its photo is for."""
        rows = self.choice(features).tolist()
        return [DECODERS[row.index(max(row))] for row in rows]

    def forward(self, images: Tensor, decoder: str) -> Tensor:
        """Main logits (B,1,S,S)."""
        return self.decode(self.encode(images), decoder)[0]


def normalization_of(body: nn.Module) -> Normalization:
    """Return the channel statistics that a timm backbone was pretrained with."""
    known: Any = getattr(body, "pretrained_cfg", None) or getattr(body, "default_cfg", None) or {}
    return Normalization(known.get("mean") or IMAGENET_MEAN, known.get("std") or IMAGENET_STD)


def create_body(name: str, pretrained: str = "") -> nn.Module:
    """Create a timm backbone with features_only.

    Args:
        name: timm model name.
        pretrained: `packaged` (weights that an installed package ships), `timm` (its hub), a local checkpoint of the
            model, or nothing for random weights.

    Raises:
        InputError: The model or its weights cannot be had, or do not fit each other.
    """
    ensure_torchvision()
    import timm

    if not timm.is_model(name):
        close = ", ".join(sorted(timm.list_models(), key=lambda known: -len(commonprefix([known, name])))[:4])
        raise InputError(f"params.yaml: model.encoder: {name!r} is no timm model, u2net or u2netp; for example {close}")
    options: dict[str, Any] = {}
    if pretrained == "timm":
        options = {"pretrained": True}
    elif pretrained and pretrained != "packaged":
        if not Path(pretrained).is_file():
            raise InputError(
                f"params.yaml: model.pretrained: no file {pretrained}; give a file, `packaged`, `timm` or nothing"
            )
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": pretrained}}
    try:
        body = timm.create_model(name, features_only=True, **options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"params.yaml: model.encoder {name!r}, pretrained {pretrained!r}: {reason}") from error
    if pretrained == "packaged":
        weights = load_packaged_weights(name)
        # The last layers serve the classifier alone; everything that the body has must be there.
        body.load_state_dict({key: weights[key] for key in body.state_dict() if key in weights})
    elif pretrained and pretrained != "timm":
        _check_loaded(body, Path(pretrained))
    return body


def _check_loaded(body: nn.Module, path: Path) -> None:
    """timm loads feature extractors loosely, so that a file of another model would pass in silence."""
    from timm.models import load_state_dict

    held = {(tuple(t.shape), float(t.double().sum())) for t in load_state_dict(str(path)).values()}
    weights = [p.detach() for p in body.parameters() if p.dim() > 1]
    found = sum((tuple(w.shape), float(w.double().sum())) in held for w in weights)
    if found < 0.9 * len(weights):
        raise InputError(
            f"params.yaml: model.pretrained: {path} holds {found} of the encoder's {len(weights)} weights; "
            "give a checkpoint of the timm model that model.encoder names"
        )


def build_model(config: ModelParams, seed: int) -> MattingNet:
    """A network with weights drawn from `seed` (the global generator is left as it was) and `config.pretrained` loaded.

    Raises InputError where the encoder or its weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.encoder in u2net.NAMES:
            net = MattingNet(config)
            if config.pretrained in ("timm", "packaged"):
                raise InputError(
                    f"params.yaml: model.pretrained: `{config.pretrained}` has no U2-Net; give its file or nothing"
                )
            if config.pretrained:
                load_u2net_checkpoint(net, Path(config.pretrained))
        else:
            net = MattingNet(config, create_body(config.encoder, config.pretrained))
    return net


def load_u2net_checkpoint(net: MattingNet, path: Path) -> None:
    """Loads a public u2net.pth or u2netp.pth: its encoder, and its decoder into each of the three. Strict."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise InputError(f"params.yaml: model.pretrained: no file {path}; give a checkpoint or nothing") from None
    encoder = {name: value for name, value in state.items() if name.split(".")[0] in u2net.ENCODER_STAGES}
    decoder = {name: value for name, value in state.items() if name not in encoder}
    try:
        net.encoder.load_state_dict(encoder)
        for module in net.decoders.values():
            module.load_state_dict(decoder)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(
            f"params.yaml: model.pretrained: {path} is no checkpoint of {net.config.encoder}: {detail}"
        ) from error
