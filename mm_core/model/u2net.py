"""U2-Net and U2-NetP (Qin et al. 2020, "U²-Net: Going deeper with nested U-structure", table 1 and figure 5).

Module names follow the public release, so that its checkpoints load: `stage1` … `stage6` form the encoder;
`stage5d` … `stage1d`, `side1` … `side6` and `outconv` form a decoder. Outputs are logits without sigmoid.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENCODER_STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")

_Stage = tuple[int, int, int, int]
"""Height of the residual U-block (0 for the dilated block without pooling), then channels in, middle and out."""
_FULL: tuple[dict[str, _Stage], dict[str, _Stage]] = (
    {
        "stage1": (7, 3, 32, 64),
        "stage2": (6, 64, 32, 128),
        "stage3": (5, 128, 64, 256),
        "stage4": (4, 256, 128, 512),
        "stage5": (0, 512, 256, 512),
        "stage6": (0, 512, 256, 512),
    },
    {
        "stage5d": (0, 1024, 256, 512),
        "stage4d": (4, 1024, 128, 256),
        "stage3d": (5, 512, 64, 128),
        "stage2d": (6, 256, 32, 64),
        "stage1d": (7, 128, 16, 64),
    },
)
_SMALL: tuple[dict[str, _Stage], dict[str, _Stage]] = (
    {name: (height, 3 if name == "stage1" else 64, 16, 64) for name, (height, *_) in _FULL[0].items()},
    {name: (height, 128, 16, 64) for name, (height, *_) in _FULL[1].items()},
)
_TABLES = {"u2net": _FULL, "u2netp": _SMALL}
NAMES = tuple(_TABLES)


class REBNCONV(nn.Module):
    """3×3 convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, out, H, W)."""
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))


class RSU(nn.Module):
    """Residual U-block of `height` levels (RSU-7 … RSU-4): a small U-Net whose output is added to its first layer's."""

    def __init__(self, height: int, channels: int, middle: int, out: int) -> None:
        super().__init__()
        self.height = height
        self.rebnconvin = REBNCONV(channels, out)
        # The lowest level is dilated in place of a further pooling.
        for level in range(1, height + 1):
            name, source = f"rebnconv{level}", out if level == 1 else middle
            self.add_module(name, REBNCONV(source, middle, dilation=2 if level == height else 1))
        for level in range(height - 1, 0, -1):
            self.add_module(f"rebnconv{level}d", REBNCONV(2 * middle, out if level == 1 else middle))
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, out, H, W)."""
        layer = self.get_submodule
        start = x = self.rebnconvin(x)
        down: list[Tensor] = []
        # Downwards: keep the output of each level for its skip connection.
        for level in range(1, self.height):
            x = layer(f"rebnconv{level}")(x if level == 1 else self.pool(x))
            down.append(x)
        x = layer(f"rebnconv{self.height}")(x)
        # Upwards: concatenate the enlarged map with the skip of the same level.
        for level in range(self.height - 1, 0, -1):
            skip = down[level - 1]
            x = layer(f"rebnconv{level}d")(torch.cat((resize_like(x, skip), skip), 1))
        return x + start


class RSU4F(nn.Module):
    """RSU-4F: block of the deepest stages, with dilations 1, 2, 4, 8 in place of pooling."""

    def __init__(self, channels: int, middle: int, out: int) -> None:
        super().__init__()
        self.rebnconvin = REBNCONV(channels, out)
        self.rebnconv1 = REBNCONV(out, middle)
        self.rebnconv2 = REBNCONV(middle, middle, dilation=2)
        self.rebnconv3 = REBNCONV(middle, middle, dilation=4)
        self.rebnconv4 = REBNCONV(middle, middle, dilation=8)
        self.rebnconv3d = REBNCONV(2 * middle, middle, dilation=4)
        self.rebnconv2d = REBNCONV(2 * middle, middle, dilation=2)
        self.rebnconv1d = REBNCONV(2 * middle, out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, out, H, W)."""
        # Downwards with growing dilation, then upwards with skip connections.
        start = self.rebnconvin(x)
        one = self.rebnconv1(start)
        two = self.rebnconv2(one)
        three = self.rebnconv3(two)
        x = self.rebnconv3d(torch.cat((self.rebnconv4(three), three), 1))
        x = self.rebnconv2d(torch.cat((x, two), 1))
        return self.rebnconv1d(torch.cat((x, one), 1)) + start


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    """Resize `x` bilinearly to the height and width of `other`."""
    larger = F.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)
    if larger.requires_grad and larger.is_contiguous(memory_format=torch.channels_last):
        larger.register_hook(_dense)
    return larger


def _dense(gradient: Tensor) -> Tensor:
    """Make a gradient contiguous in channels-last format.

    The gradient of a concatenation is a slice. Without this copy torch leaves the channels-last kernels, and the
    backward pass of the resize takes eight times as long.
    """
    return gradient.contiguous(memory_format=torch.channels_last)


def _block(stage: _Stage) -> nn.Module:
    height, *channels = stage
    return RSU(height, *channels) if height else RSU4F(*channels)


class U2Encoder(nn.Module):
    """The six encoder stages: (B, 3, H, W) → six feature maps at strides 1, 2, 4, 8, 16, 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        table = _TABLES[name][0]
        for stage, block in table.items():
            self.add_module(stage, _block(block))
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.channels = [block[-1] for block in table.values()]
        self.reductions = [1, 2, 4, 8, 16, 32]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of each level, from fine to coarse."""
        features: list[Tensor] = []
        for stage in ENCODER_STAGES:
            x = self.get_submodule(stage)(self.pool(x) if features else x)
            features.append(x)
        return features


class U2Decoder(nn.Module):
    """Five decoder stages and the side outputs: → seven logit maps (B, 1, H, W), the fused one first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        encoder, decoder = _TABLES[name]
        for stage, block in decoder.items():
            self.add_module(stage, _block(block))
        # Side outputs of the five decoder stages and of the deepest encoder stage.
        sides = [decoder[f"stage{level}d"][-1] for level in range(1, 6)] + [encoder["stage6"][-1]]
        for level, channels in enumerate(sides, 1):
            self.add_module(f"side{level}", nn.Conv2d(channels, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the logits (B, 1, S, S): the fused map first, then the map of each level."""
        x = features[-1]
        # Collect the map of each level, from fine to coarse.
        levels = [x]
        for level in range(5, 0, -1):
            skip = features[level - 1]
            x = self.get_submodule(f"stage{level}d")(torch.cat((resize_like(x, skip), skip), 1))
            levels.insert(0, x)
        # Each level gives one map; all maps are resized to the finest and fused by a 1×1 convolution.
        sides = [cast(Tensor, self.get_submodule(f"side{n}")(level)) for n, level in enumerate(levels, 1)]
        sides = [sides[0], *(resize_like(side, sides[0]) for side in sides[1:])]
        return [self.outconv(torch.cat(sides, 1)), *sides]
