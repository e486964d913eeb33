"""Pictures as a graph's input, and what a graph's file says about how they go in.

An ONNX graph says the size of its input and nothing of colours: the order of the channels, their range and how a
picture of another shape is fitted are settings here, in a line such as ``bgr 0..255`` or ``rgb imagenet stretch``. A
file may carry the line as its metadata ``codriver.pictures``. The rule kept: what is not known is asked for, never
guessed, because a graph calibrated on wrong inputs is wrong in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from codriver.core.errors import BadConfigValue, BadModelFile, MissingFile

Floats = NDArray[np.float32]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
_RANGES = {"0..1": (0.0, 255.0), "0..255": (0.0, 1.0), "-1..1": (127.5, 127.5)}
# Of ImageNet's pictures, as torchvision's models take them.
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = 114.0  # what the YOLO family pads with
_LARGEST_PIXELS = 64 << 20
_FORM = "'rgb' or 'bgr', then '0..1', '0..255', '-1..1' or 'imagenet', and 'stretch' where pictures are not padded"


@dataclass(frozen=True)
class Look:
    """How pictures go in. ``stretched``: to the input's shape; otherwise scaled, at the top left, padded with grey."""

    bgr: bool
    values: str
    stretched: bool = False

    def __str__(self) -> str:
        return f"{'bgr' if self.bgr else 'rgb'} {self.values}{' stretch' if self.stretched else ''}"


@dataclass(frozen=True)
class Feed:
    """A graph's one input of pictures: ``name``, pixels, whether channels come ``last``, and the look."""

    name: str
    height: int
    width: int
    last: bool
    look: Look

    def read(self, file: Path) -> Floats:
        """float32 (1, 3, height, width), or (1, height, width, 3). Errors: :class:`BadConfigValue` naming the file."""
        picture = _decoded(file)
        width, height = self.scaled(picture.width, picture.height)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        values = np.full((self.height, self.width, 3), _GREY, np.float32)
        values[:height, :width] = pixels
        if self.look.values == "imagenet":
            values = np.asarray((values / 255 - np.array(_MEAN)) / np.array(_SPREAD), np.float32)
        else:
            shift, scale = _RANGES[self.look.values]
            values = (values - shift) / scale
        values = values[:, :, ::-1] if self.look.bgr else values
        return np.ascontiguousarray((values if self.last else values.transpose(2, 0, 1))[None], np.float32)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """What a picture of ``width`` × ``height`` covers of the input, in pixels."""
        if self.look.stretched:
            return self.width, self.height
        by = min(self.width / width, self.height / height)
        return max(1, round(width * by)), max(1, round(height * by))


def parse_look(line: str) -> Look:
    """Errors: :class:`BadConfigValue` with the form."""
    words = line.lower().split()
    known = len(words) in (2, 3) and words[0] in ("rgb", "bgr") and words[1] in (*_RANGES, "imagenet")
    if not known or words[2:] not in ([], ["stretch"]):
        raise BadConfigValue(f"'{line[:60]}' does not say how pictures go in: {_FORM}.", param="look")
    return Look(words[0] == "bgr", words[1], len(words) == 3)


def feed_of(model: onnx.ModelProto, file: Path, line: str | None = None) -> Feed:
    """``line``: a look that goes before what the file says.

    Errors: :class:`BadModelFile` for inputs that are no picture; :class:`BadConfigValue` where no look is known.
    """
    given = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in given]
    shapes = {one.name: [side.dim_value for side in one.type.tensor_type.shape.dim] for one in inputs}
    told = ", ".join(f"{name} {[side or '?' for side in shape]}" for name, shape in shapes.items())
    if len(inputs) != 1:
        raise BadModelFile(
            f"The graph {file} takes {told or 'nothing'}; one input of pictures is what can be calibrated."
        )
    name, shape = next(iter(shapes.items()))
    floats = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    last = len(shape) == 4 and shape[3] == 3
    if not floats or len(shape) != 4 or shape[0] not in (0, 1) or (not last and shape[1] != 3):
        raise BadModelFile(
            f"The input {told} of {file} is no picture: float32 of (1, 3, height, width) or (1, height, width, 3) is."
        )
    height, width = shape[1:3] if last else shape[2:]
    if not height or not width:
        raise BadModelFile(f"The input {told} of {file} has no fixed height and width; export the graph with both.")
    props = {pair.key: pair.value for pair in model.metadata_props}
    line = line or props.get("codriver.pictures")
    if line is None:
        raise BadConfigValue(
            f"The file {file} does not say how pictures go in; say it with --look: {_FORM}.", param="look"
        )
    return Feed(name, height, width, last, parse_look(line))


def pictures_in(folder: Path) -> list[Path]:
    """In the order of their names. Errors: :class:`MissingFile`; :class:`BadConfigValue` for a folder without any."""
    if not folder.is_dir():
        raise MissingFile(f"The folder of pictures {folder} does not exist.")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise BadConfigValue(f"The folder {folder} has no pictures ({', '.join(SUFFIXES)}).", param="pictures")
    return found


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them at equal distances: frames that follow each other say the same twice."""
    return [files[at * len(files) // count] for at in range(min(count, len(files)))]


def _decoded(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if opened.width * opened.height > _LARGEST_PIXELS:
                raise BadConfigValue(
                    f"The picture {file} has {opened.width} × {opened.height} pixels; that is too many."
                )
            return opened.convert("RGB")
    except FileNotFoundError:
        raise MissingFile(f"The picture {file} does not exist.") from None
    except UnidentifiedImageError:
        raise BadConfigValue(f"The file {file} is no picture that can be decoded.", param="pictures") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadConfigValue(f"The picture {file} cannot be decoded: {str(error)[:200]}.", param="pictures") from None
