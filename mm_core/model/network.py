"""Matting network with one shared encoder and three decoders (Matting Moments, section 2.1). Outputs are logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import DECODERS
from mm_core.model import u2net
from mm_core.model.packaged import load_packaged_weights
from mm_core.model.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    import timm
    from timm import models as timm_models
else:
    timm = Deferred("timm")
    timm_models = Deferred("timm.models")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet photos in [0, 1]; U2-Net was published with the same values."""
DETAIL_CHANNELS = 8
"""Channels of the full-resolution features of the image, for edges that the encoder's first stride removes."""


def conv_bn_relu(channels: int, out: int, kernel: int = 3) -> nn.Sequential:
    """Return convolution without bias, batch norm and ReLU, which fold into one layer when quantised."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


class Normalization(nn.Module):
    """Normalise by the channel statistics of the encoder's pretraining, inside the network.

    The network takes plain RGB in [0, 1], so its normalisation is part of the weights and of every exported file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        """Store `mean` and `std`: three values each, of RGB in [0, 1]."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise RGB (B, 3, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


class TimmEncoder(nn.Module):
    """A timm backbone with `features_only`, preceded by a full-resolution detail branch.

    `forward` maps (B, 3, S, S) to features, fine to coarse; `channels[i]` and `reductions[i]` describe the i-th.
    """

    channels: list[int]
    reductions: list[int]

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        info: Any = body.feature_info
        if sorted(set(info.reduction())) != list(info.reduction()):
            raise InputError(
                "params.yaml: model.encoder: its features do not halve step by step (a plain vision transformer?); "
                "choose a convolutional or hierarchical timm model"
            )
        self.body = body
        self.detail = conv_bn_relu(3, DETAIL_CHANNELS)
        self.channels = [DETAIL_CHANNELS, *info.channels()]
        self.reductions = [1, *info.reduction()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of each level, from fine to coarse: (B, C, H, W) each."""
        return [self.detail(images), *self.body(images)]


class LightDecoder(nn.Module):
    """A narrow U-shaped decoder: each level adds a 1×1 projection of the encoder's feature to the enlarged coarser one.

    `width` is the number of channels at stride 4; it is doubled from stride 8 on and halved with each finer level.
    `forward` returns a list of one logit map at the resolution of the finest feature.
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], width: int) -> None:
        super().__init__()
        widths = [_width_at(reduction, width) for reduction in reductions]
        # No norm here: at stride 32 a single small image leaves one value per channel.
        self.bottom = nn.Sequential(nn.Conv2d(channels[-1], widths[-1], 1), nn.ReLU(inplace=True))
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], widths[-1], 1))
        self.reduce = nn.ModuleList()
        self.skip = nn.ModuleList()
        self.fuse = nn.ModuleList()
        for level in range(len(channels) - 2, -1, -1):
            here, below = widths[level], widths[level + 1]
            self.reduce.append(conv_bn_relu(below, here, 1) if below != here else nn.Identity())
            # A wide skip is projected to fewer channels; a thin one is used unchanged.
            thin = channels[level] <= here
            self.skip.append(nn.Identity() if thin else conv_bn_relu(channels[level], here, 1))
            self.fuse.append(conv_bn_relu(here + min(channels[level], here), here))
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the main logits (B, 1, S, S), from the features of all levels, fine to coarse."""
        x = self.bottom(features[-1])
        # From coarse to fine: reduce, enlarge, concatenate with the skip, fuse.
        x = x + self.context(x)
        for feature, reduce, skip, fuse in zip(features[-2::-1], self.reduce, self.skip, self.fuse, strict=True):
            x = fuse(torch.cat((u2net.resize_like(reduce(x), feature), skip(feature)), 1))
        return [self.head(x)]


def _width_at(reduction: int, width: int) -> int:
    """Return the number of channels at a stride."""
    if reduction >= 8:
        return 2 * width
    return max(4, width * reduction // 4)


class MattingNet(nn.Module):
    """One shared encoder and three decoders (saliency, portrait, scenery); outputs are logits.

    The constructor gives random weights. `build_model` uses a seed and pretrained files, `files.load_model` a saved
    model.
    """

    normalize: Normalization
    encoder: nn.Module
    decoders: nn.ModuleDict
    channels: list[int]
    """Channels of each feature, fine to coarse."""
    reductions: list[int]
    """Stride of each feature relative to the input, fine to coarse."""
    chooser: nn.Linear
    """Predicts the decoder of a photo of unknown category. Untrained, it always chooses the first decoder."""
    foreground_scale: float = 1.0
    """Factor in (0, 1] of positive logits of the mattes, which corrects overconfidence (training/calibration.py)."""
    needed: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Maps a batch's decoders to those that any of the processes sharing the batch needs, in one order.

    Every process must decode with each of them, even without rows of its own."""

    def __init__(self, config: ModelParams, body: nn.Module | None = None) -> None:
        """Create the network; `body` is a timm backbone with `features_only`, by default one with random weights.

        Raises:
            InputError: The encoder is unknown or does not fit the input size.
        """
        super().__init__()
        self.config = config
        encoder: u2net.U2Encoder | TimmEncoder
        if config.encoder in u2net.NAMES:
            if config.size < 64:
                # Smaller inputs are pooled to one pixel in a block, which its batch norm cannot train on.
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
        # Zero weights give equal logits, so an untrained chooser is neutral.
        self.chooser = nn.Linear(self.channels[-1], len(DECODERS))
        nn.init.zeros_(self.chooser.weight)
        nn.init.zeros_(self.chooser.bias)

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the deepest features."""
        return self.channels[-1]

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters with pretrained weights: those of the timm backbone, or none without pretraining."""
        if self.config.pretrained and isinstance(self.encoder, TimmEncoder):
            return list(self.encoder.body.parameters())
        return []

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return features, fine to coarse, of RGB (B, 3, S, S) in [0, 1]; S must be a multiple of 32."""
        return self.encoder(self.normalize(images))

    def decode(self, features: list[Tensor], decoder: str) -> list[Tensor]:
        """Return logit maps (B, 1, S, S): the main one first, then the six side outputs if the net is a U2-Net."""
        main, *sides = self.decoders[decoder](features)
        return [scale_foreground(main, self.foreground_scale), *sides]

    def route(self, features: list[Tensor], decoders: Sequence[str]) -> list[Tensor]:
        """Decode a mixed batch: each decoder on its own rows, returned in the order of the batch.

        Args:
            features: As returned by `encode`.
            decoders: One decoder name per row.

        Returns:
            Logit maps as of `decode`.

        Raises:
            ValueError: The number of names differs from the number of rows.
        """
        if len(decoders) != features[0].shape[0]:
            raise ValueError(f"{len(decoders)} decoder names for a batch of {features[0].shape[0]}")
        # With several processes a decoder without rows here still runs, on an empty batch.
        rows: dict[str, list[int]] = {name: [] for name in self.needed(decoders)} if self.needed else {}
        for row, name in enumerate(decoders):
            rows.setdefault(name, []).append(row)
        if len(rows) == 1:
            return self.decode(features, next(iter(rows)))
        device = features[0].device
        parts: list[list[Tensor]] = []
        for name, members in rows.items():
            # Each decoder runs once, on the rows that need it.
            index = torch.tensor(members, dtype=torch.long, device=device)
            parts.append(self.decode([feature.index_select(0, index) for feature in features], name))
        # Invert the permutation that sorted the rows by decoder.
        order = [row for members in rows.values() for row in members]
        back = torch.argsort(torch.tensor(order, device=device))
        return [torch.cat(maps).index_select(0, back) for maps in zip(*parts, strict=True)]

    def one_decoder(self, decoder: str) -> OneDecoder:
        """Return the parts that the mattes of one decoder need, without the weights of the others."""
        return OneDecoder(self, decoder)

    @torch.no_grad()
    def copy_first_decoder(self) -> None:
        """Copy the weights and statistics of the first decoder to the others."""
        first, *others = self.decoders.values()
        for decoder in others:
            decoder.load_state_dict(first.state_dict())

    def choice(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, 3) of `DECODERS` from the bottleneck.

        The bottleneck is detached, so that training the chooser does not change the mattes
        (docs/decisions/0016-unknown-category.md).
        """
        pooled = features[-1].detach().float().mean((2, 3))
        return self.chooser(F.layer_norm(pooled, pooled.shape[-1:]))

    def chosen(self, features: list[Tensor]) -> list[str]:
        """Return the name of the chosen decoder of each row."""
        rows = self.choice(features).tolist()
        return [DECODERS[row.index(max(row))] for row in rows]

    def forward(self, images: Tensor, decoder: str) -> Tensor:
        """Return the main logits (B, 1, S, S)."""
        return self.decode(self.encode(images), decoder)[0]


class OneDecoder(nn.Module):
    """A network of one decoder: RGB (B, 3, S, S) in [0, 1] → alpha (B, 1, S, S)."""

    def __init__(self, net: MattingNet, decoder: str) -> None:
        """Take the parts of `net`, which stay shared with it."""
        super().__init__()
        self.normalize, self.encoder, self.decoder = net.normalize, net.encoder, net.decoders[decoder]
        self.scale = net.foreground_scale

    def forward(self, image: Tensor) -> Tensor:
        """Return the mattes."""
        logits = self.decoder(self.encoder(self.normalize(image)))[0]
        return torch.sigmoid(scale_foreground(logits, self.scale))


def scale_foreground(logits: Tensor, scale: float) -> Tensor:
    """Multiply positive logits by `scale` in (0, 1]; 1 returns them unchanged."""
    # For a scale below 1 the smaller of both is the scaled positive or the unscaled negative logit.
    return logits if scale == 1 else torch.minimum(logits, scale * logits)


def normalization_of(body: nn.Module) -> Normalization:
    """Return the channel statistics that a timm backbone was pretrained with."""
    config: Any = getattr(body, "pretrained_cfg", None) or getattr(body, "default_cfg", None) or {}
    return Normalization(config.get("mean") or IMAGENET_MEAN, config.get("std") or IMAGENET_STD)


def create_body(name: str, pretrained: str = "") -> nn.Module:
    """Create a timm backbone with features_only.

    Args:
        name: timm model name.
        pretrained: `packaged` (weights of an installed package), `timm` (its hub), a local checkpoint of the model, or
            empty for random weights.

    Raises:
        InputError: The model or its weights are not available or do not match.
    """
    ensure_torchvision()
    if not timm.is_model(name):
        close = ", ".join(sorted(timm.list_models(), key=lambda model: -len(commonprefix([model, name])))[:4])
        raise InputError(f"params.yaml: model.encoder: {name!r} is no timm model, u2net or u2netp; for example {close}")
    overlay: dict[str, str] | None = None
    if pretrained not in ("", "packaged", "timm"):
        if not Path(pretrained).is_file():
            raise InputError(
                f"params.yaml: model.pretrained: no file {pretrained}; give a file, `packaged`, `timm` or nothing"
            )
        # timm loads a local file in place of a download.
        overlay = {"file": pretrained}
    try:
        loads = pretrained not in ("", "packaged")
        body = timm.create_model(name, features_only=True, pretrained=loads, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"params.yaml: model.encoder {name!r}, pretrained {pretrained!r}: {reason}") from error
    if pretrained == "packaged":
        weights = load_packaged_weights(name)
        # The packaged file also holds classifier layers; every weight of the backbone must be in it.
        body.load_state_dict({key: weights[key] for key in body.state_dict() if key in weights})
    elif pretrained and pretrained != "timm":
        _check_loaded(body, Path(pretrained))
    return body


def _check_loaded(body: nn.Module, path: Path) -> None:
    """Raise InputError if the file holds fewer than 90 % of the backbone's weights.

    timm loads feature extractors non-strictly and reports no error for a file of another model.
    """
    # Names differ between the file and the feature extractor, so compare shapes and sums.
    file_weights = {(tuple(t.shape), float(t.double().sum())) for t in timm_models.load_state_dict(str(path)).values()}
    # Biases and norms are too similar between models to prove anything.
    weights = [p.detach() for p in body.parameters() if p.dim() > 1]
    matches = sum((tuple(w.shape), float(w.double().sum())) in file_weights for w in weights)
    if matches < 0.9 * len(weights):
        raise InputError(
            f"params.yaml: model.pretrained: {path} holds {matches} of the encoder's {len(weights)} weights; "
            "give a checkpoint of the timm model that model.encoder names"
        )


def build_model(config: ModelParams, seed: int) -> MattingNet:
    """Return a network with weights drawn from `seed` and the weights of `config.pretrained` loaded.

    The global random generator is left unchanged.

    Raises:
        InputError: The encoder or its weights are not available.
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
    """Load a public u2net.pth or u2netp.pth strictly: its encoder, and its decoder into each of the three decoders."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise InputError(f"params.yaml: model.pretrained: no file {path}; give a checkpoint or nothing") from None
    # The release stores encoder and decoder under one flat list of names.
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
