"""TwinLiteNet, drivable area and lane lines from one road picture, in plain torch.

Che et al., "TwinLiteNet: An Efficient and Lightweight Model for Driveable Area and Lane Segmentation in Self-Driving
Cars" (2023), https://arxiv.org/abs/2307.10705. Its encoder is ESPNet's (Mehta et al. 2018, https://arxiv.org/abs/1803.06815)
with the two attentions of DANet (Fu et al. 2019, https://arxiv.org/abs/1809.02983). Names of the members are those of
the published checkpoint's tensors; nothing else of it is needed. For running only: nothing here trains.

The rule kept: this file imports torch alone (for photos NumPy and Pillow), as it is read where Codriver is not
installed.
"""

# torch is not there where types are checked: what comes of it is of any type.
# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

HEIGHT, WIDTH = 360, 640  # of the pictures that it was trained on; both are whole multiples of 8
OUTPUTS = ("drivable", "lanes")
_EPS = 1e-3  # of its batch normalisations
_RATES = (1, 2, 4, 8, 16)
_NOTHING = 1e-12  # an attention with a smaller gamma is below the rounding of what it is added to


class Activated(nn.Module):
    """A convolution, batch normalisation and PReLU. ``kernel`` odd."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, _EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Doubled(nn.Module):
    """Height and width doubled by a transposed convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, _EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.deconv(x)))


class Bare(nn.Module):
    """A convolution alone, which the checkpoint calls ``conv``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, rate: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, rate * (kernel // 2), rate, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Normed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, _EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class Pyramid(nn.Module):
    """ESPNet's spatial pyramid: fewer channels, five dilated convolutions, and their running sums side by side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        narrow = outputs // len(_RATES)
        self.c1 = Bare(inputs, narrow, kernel, stride)
        self.d1 = Bare(narrow, outputs - 4 * narrow, 3)
        self.d2, self.d4, self.d8, self.d16 = (Bare(narrow, narrow, 3, rate=rate) for rate in _RATES[1:])

    def merged(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        sums = [self.d2(reduced)]
        for wider in (self.d4, self.d8, self.d16):
            sums.append(sums[-1] + wider(reduced))
        return torch.cat([self.d1(reduced), *sums], 1)


class Halved(Pyramid):
    """A pyramid whose first convolution halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, 2)
        self.bn = nn.BatchNorm2d(outputs, _EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.merged(x)))


class Residual(Pyramid):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, 1)
        self.bn = Normed(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x + self.merged(x))


class PositionAttention(nn.Module):
    """Each place takes in all others, weighted by likeness."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        weights = torch.bmm(query.transpose(1, 2), key).softmax(-1)
        return self.gamma * torch.bmm(value, weights.transpose(1, 2)).view(x.shape) + x


class ChannelAttention(nn.Module):
    """Each channel takes in all others, weighted by how little they resemble it."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        likeness = torch.bmm(flat, flat.transpose(1, 2))
        weights = (likeness.amax(-1, keepdim=True) - likeness).softmax(-1)
        return self.gamma * torch.bmm(weights, flat).view(x.shape) + x


class Encoder(nn.Module):
    """(n, 3, h, w) to (n, 32, h/8, w/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(3, 2, 1)
        self.level1 = Activated(3, 16, 3, 2)
        self.b1 = Activated(19, 19, 3)
        self.level2_0 = Halved(19, 64)
        self.level2 = nn.Sequential(*(Residual(64) for _ in range(2)))
        self.b2 = Activated(131, 131, 3)
        self.level3_0 = Halved(131, 128)
        self.level3 = nn.Sequential(*(Residual(128) for _ in range(3)))
        self.b3 = Activated(256, 32, 3)
        self.sa = PositionAttention(32)
        self.sc = ChannelAttention()
        self.conv_sa = Activated(32, 32, 3)
        self.conv_sc = Activated(32, 32, 3)
        self.classifier = Activated(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.shrink(x)
        quarter = self.shrink(half)
        first = self.level2_0(self.b1(torch.cat([self.level1(x), half], 1)))
        second = self.level3_0(self.b2(torch.cat([self.level2(first), first, quarter], 1)))
        both = self.b3(torch.cat([second, self.level3(second)], 1))
        return self.classifier(self.conv_sa(self.sa(both)) + self.conv_sc(self.sc(both)))


class TwinLiteNet(nn.Module):
    """RGB in 0..1, (n, 3, h, w), to two pairs of scores (n, 2, h, w): not drivable or drivable, no lane or lane."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.up_1_1, self.up_2_1, self.classifier_1 = Doubled(32, 16), Doubled(16, 8), Doubled(8, 2)
        self.up_1_2, self.up_2_2, self.classifier_2 = Doubled(32, 16), Doubled(16, 8), Doubled(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coded = self.encoder(x)
        drivable = self.classifier_1(self.up_2_1(self.up_1_1(coded)))
        lanes = self.classifier_2(self.up_2_2(self.up_1_2(coded)))
        return drivable, lanes


def load(checkpoint: Path) -> TwinLiteNet:
    """The net with the checkpoint's weights, ready to run. Nothing in the file is executed.

    Errors: ``ValueError`` naming the file, and the tensor that is missing, not known or of another shape.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's readers meet in a file that is no checkpoint
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{checkpoint} is no checkpoint of plain tensors: {line[:200]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{checkpoint} is no state dict: a table of tensors is expected")
    # It was saved from a model that was spread over several devices.
    state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    net = TwinLiteNet()
    wanted = net.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise ValueError(f"{checkpoint} is no TwinLiteNet: it has no tensor {name}")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{checkpoint} is no TwinLiteNet: {name} has shape {tuple(state[name].shape)}, "
                f"not {tuple(tensor.shape)}"
            )
    if strays := sorted(set(state) - set(wanted)):
        raise ValueError(f"{checkpoint} is no TwinLiteNet: it has a tensor {strays[0]}, which the net does not know")
    net.load_state_dict(state)
    # Of the published weights the position attention's gamma is -4e-20: it costs time and changes nothing.
    for name in ("sa", "sc"):
        if abs(float(getattr(net.encoder, name).gamma)) < _NOTHING:
            setattr(net.encoder, name, nn.Identity())
    return net.eval()


def photo(file: Path) -> Tensor:
    """A photo as the net takes it: RGB in 0..1, (1, 3, 360, 640), scaled bilinearly as its authors do.

    Errors: ``ValueError`` naming the file.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no photo that can be read: {error}") from error
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    whole = interpolate(pixels.permute(2, 0, 1)[None].float(), (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return whole / 255.0


def write_expected(net: TwinLiteNet, photos: list[Tensor], file: Path) -> None:
    """As ``.npz``: the photos (``input``), what the net says of each (``drivable``, ``lanes``), and how many numbers it
    is made of (``weights``).
    """
    import numpy as np

    with torch.no_grad():
        said = [net(picture) for picture in photos]
    heads: dict[str, Any] = {
        name: np.concatenate([heads[at].numpy() for heads in said]) for at, name in enumerate(OUTPUTS)
    }
    weights = np.int64(sum(tensor.numel() for tensor in net.state_dict().values()))
    np.savez(file, input=np.concatenate([picture.numpy() for picture in photos]), weights=weights, **heads)
