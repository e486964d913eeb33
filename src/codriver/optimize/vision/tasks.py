"""What a vision graph's outputs mean, and how far two graphs agree on pictures.

Boxes: those of the reference with a score of 0.3 or more count as right, and the candidate is scored against them by
COCO's average precision, over thresholds of intersection over union from 0.5 to 0.95. Labels per pixel: mean
intersection over union with the reference's labels. One vector: the share of equal first choices. Anything else: one
minus the relative squared error. Agreement is not accuracy: a candidate that is right where the reference is wrong
loses by it. Sources: Lin et al. 2014 (COCO); Ge et al. 2021 (YOLOX), whose decoding of boxes this is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Kind = Literal["boxes", "boxes-yolox", "boxes-fastestdet", "pixels", "classes", "values"]
SURE = 0.3
_LEAST_SCORE, _MOST_BOXES, _OVERLAP = 0.03, 300, 0.45
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
_RECALLS = np.linspace(0, 1, 101)
_YOLOX_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Boxes:
    """``corners``: (n, 4) as left, top, right, bottom in pixels of the input; ``scores`` (n); ``classes`` (n)."""

    corners: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def sure(self, least: float = SURE) -> Boxes:
        return self.only(self.scores >= least)

    def only(self, which: NDArray[np.bool_]) -> Boxes:
        return Boxes(self.corners[which], self.scores[which], self.classes[which])


@dataclass(frozen=True)
class Task:
    """``kind``, and the input's ``height`` and ``width`` in pixels."""

    kind: Kind
    height: int
    width: int

    def boxes(self, outputs: Sequence[Floats]) -> Boxes:
        """Only for kinds of boxes; one per object, by non-maximum suppression within each class."""
        corners, scores = self._rows(outputs)
        classes = scores.argmax(1)
        best = scores[np.arange(len(scores)), classes]
        kept = np.flatnonzero(best >= _LEAST_SCORE)
        return suppressed(Boxes(corners[kept], best[kept].astype(np.float32), classes[kept]))

    def _rows(self, outputs: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Every box's corners (n, 4), and its scores (n, classes)."""
        rows = outputs[0][0]
        if self.kind == "boxes-yolox":
            rows = _yolox_decoded(rows, self.height, self.width)
        elif self.kind == "boxes-fastestdet":
            rows = _fastestdet_decoded(rows, self.height, self.width)
        half = rows[:, 2:4] / 2
        corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1).astype(np.float32)
        return corners, rows[:, 5:] * rows[:, 4:5]

    def noise(self, reference: Sequence[Sequence[Floats]], candidate: Sequence[Sequence[Floats]]) -> float:
        """What rounding does to what is read of the outputs; 0 for none. For boxes the squared error of their scores
        over the scores' energy, and how little they overlap, by squared score; otherwise as :func:`noise`.
        """
        if not self.finds_boxes:
            return noise(reference, candidate)
        energy, error = 1e-12, 0.0
        for one, two in zip(reference, candidate, strict=True):
            (right, sure), (mine, told) = self._rows(one), self._rows(two)
            energy += float(np.square(sure).sum())
            apart = 1 - _overlap_by_row(right, mine)
            error += float(np.square(sure - told).sum() + (apart * np.square(sure).sum(1)).sum())
        return error / energy

    @property
    def finds_boxes(self) -> bool:
        return self.kind.startswith("boxes")

    def agreement(self, reference: Sequence[Sequence[Floats]], candidate: Sequence[Sequence[Floats]]) -> float:
        """From 0 to 1, over pictures: each item holds one picture's outputs."""
        return self.agreements(reference, candidate)(np.arange(len(reference)))

    def agreements(
        self, reference: Sequence[Sequence[Floats]], candidate: Sequence[Sequence[Floats]]
    ) -> Callable[[NDArray[np.int64]], float]:
        """The agreement over some of the pictures, by number: what is read of each is worked out once."""
        pairs = list(zip(reference, candidate, strict=True))
        if self.finds_boxes:
            held = [matched(self.boxes(two), self.boxes(one).sure()) for one, two in pairs]
            return lambda at: _precision([held[i] for i in at])
        if self.kind == "pixels":
            each = [np.mean([_mean_iou(a, b) for a, b in zip(one, two, strict=True)]) for one, two in pairs]
        elif self.kind == "classes":
            each = [np.float64(one[0].argmax() == two[0].argmax()) for one, two in pairs]
        else:
            each = [np.float64(max(0.0, 1 - noise([one], [two]))) for one, two in pairs]
        values = np.array(each)
        return lambda at: float(values[at].mean())


def task_of(model: onnx.ModelProto, height: int, width: int) -> Task:
    """By the shapes of the outputs, and the metadata ``codriver.boxes``."""
    shapes = [tuple(side.dim_value for side in one.type.tensor_type.shape.dim) for one in model.graph.output]
    props = {pair.key: pair.value for pair in model.metadata_props}
    first, kind = shapes[0], "values"
    grid = sum((height // stride) * (width // stride) for stride in _YOLOX_STRIDES)
    if len(shapes) == 1 and len(first) == 3 and first[2] > 5:
        if props.get("codriver.boxes") == "decoded":
            kind = "boxes"
        elif first[1] == grid:
            kind = "boxes-yolox"
    elif len(shapes) == 1 and first == (1, 85, height // 16, width // 16):
        kind = "boxes-fastestdet"
    elif all(len(shape) == 4 and 2 <= shape[1] <= 256 and shape[2] * 8 >= height for shape in shapes):
        kind = "pixels"
    elif len(shapes) == 1 and len(first) == 2 and first[1] > 1:
        kind = "classes"
    return Task(kind, height, width)  # type: ignore[arg-type]  # each is one of Kind


def noise(reference: Sequence[Sequence[Floats]], candidate: Sequence[Sequence[Floats]]) -> float:
    """Squared error over the reference's energy, each output by itself, their mean."""
    ratios = []
    for at in range(len(reference[0])):
        error = sum(
            float(np.square(a[at] - b[at], dtype=np.float64).sum()) for a, b in zip(reference, candidate, strict=True)
        )
        ratios.append(error / max(1e-12, sum(float(np.square(a[at], dtype=np.float64).sum()) for a in reference)))
    return float(np.mean(ratios))


def suppressed(found: Boxes) -> Boxes:
    """Greedy, within each class; the best first."""
    order = np.argsort(-found.scores, kind="stable")[:_MOST_BOXES]
    corners, classes = found.corners[order], found.classes[order]
    apart = corners + (classes[:, None] * 1e5).astype(np.float32)  # boxes of other classes never overlap
    overlaps = overlap(apart.astype(np.float64), apart.astype(np.float64)) > _OVERLAP
    kept = np.ones(len(order), bool)
    for at in range(len(order)):
        if kept[at]:
            kept[at + 1 :] &= ~overlaps[at, at + 1 :]
    return Boxes(corners[kept], found.scores[order][kept], classes[kept])


def overlap(one: NDArray[np.floating], two: NDArray[np.floating]) -> NDArray[np.floating]:
    """Intersection over union of corners (n, 4) and (m, 4), as (n, m)."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.prod(np.maximum(0, high - low), axis=2)
    areas = [np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (one, two)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def _overlap_by_row(one: Floats, two: Floats) -> Floats:
    sides = np.maximum(0, np.minimum(one[:, 2:], two[:, 2:]) - np.maximum(one[:, :2], two[:, :2]))
    shared = sides.prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (two[:, 2:] - two[:, :2]).prod(1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float32)


@dataclass(frozen=True)
class Matches:
    """A picture's boxes: ``scores``, ``classes`` (n), ``hits`` (n, thresholds), and how many of a class there are."""

    scores: Floats
    classes: NDArray[np.int64]
    hits: NDArray[np.bool_]
    wanted: dict[int, int]


def matched(found: Boxes, truth: Boxes, thresholds: Sequence[float] = THRESHOLDS) -> Matches:
    """Each found box takes the free right one of its class that it overlaps most, the best score first."""
    hits = np.zeros((len(found.scores), len(thresholds)), bool)
    overlaps = overlap(found.corners, truth.corners)
    overlaps[found.classes[:, None] != truth.classes[None]] = -1
    order = np.argsort(-found.scores, kind="stable")
    for column, threshold in enumerate(thresholds):
        free = np.ones(len(truth.scores), bool)
        for at in order if free.size else ():
            best = int(np.where(free, overlaps[at], -1).argmax())
            if free[best] and overlaps[at, best] >= threshold:
                free[best], hits[at, column] = False, True
    kinds, counts = np.unique(truth.classes, return_counts=True)
    wanted = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    return Matches(found.scores, found.classes, hits, wanted)


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """COCO's, with 101 points of recall, over the classes that ``truth`` holds; NaN where it holds none."""
    return _precision([matched(one, two, thresholds) for one, two in zip(found, truth, strict=True)])


def _precision(held: Sequence[Matches]) -> float:
    scores, classes = np.concatenate([one.scores for one in held]), np.concatenate([one.classes for one in held])
    hits = np.concatenate([one.hits for one in held])
    wanted: Counter[int] = Counter()
    for one in held:
        wanted.update(one.wanted)
    values = []
    for kind, count in wanted.items():
        mine = np.flatnonzero(classes == kind)
        ranked = hits[mine[np.argsort(-scores[mine], kind="stable")]]
        values += [_under_curve(ranked[:, column], count) for column in range(hits.shape[1])]
    return float(np.mean(values)) if values else float("nan")


def _under_curve(hits: NDArray[np.bool_], wanted: int) -> float:
    """Precision at 101 recalls, each the best at that recall or beyond."""
    if not hits.size:
        return 0.0
    right = hits.cumsum()
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(right / wanted, _RECALLS - 1e-9)
    return float(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0).mean())


def _yolox_decoded(rows: Floats, height: int, width: int) -> Floats:
    cells, strides = [], []
    for stride in _YOLOX_STRIDES:
        grid = np.stack(np.meshgrid(np.arange(width // stride), np.arange(height // stride)), -1).reshape(-1, 2)
        cells.append(grid)
        strides.append(np.full((len(grid), 1), stride))
    cell, stride_of = np.concatenate(cells), np.concatenate(strides)
    sizes = np.exp(np.minimum(rows[:, 2:4], 20)) * stride_of
    return np.concatenate([(rows[:, :2] + cell) * stride_of, sizes, rows[:, 4:]], 1).astype(np.float32)


def _fastestdet_decoded(planes: Floats, height: int, width: int) -> Floats:
    """One objectness, then a box in its own squashed units, then the classes; as the model's own ``test.py`` has it."""
    _, high, wide = planes.shape
    rows = planes.reshape(planes.shape[0], -1).T
    cells = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).reshape(-1, 2)
    whole = np.array([width, height], np.float32)
    centres = (np.tanh(rows[:, 1:3]) + cells) / np.array([wide, high]) * whole
    sizes = 1 / (1 + np.exp(-np.clip(rows[:, 3:5], -50, 50))) * whole
    # Its score is objectness^0.6 × class^0.4; the product of two columns is what is taken, so the classes carry it.
    objectness = np.maximum(rows[:, :1], 1e-9)
    scores = objectness**0.6 * np.maximum(rows[:, 5:], 0) ** 0.4
    return np.concatenate([centres, sizes, np.ones_like(objectness), scores], 1).astype(np.float32)


def _mean_iou(reference: Floats, candidate: Floats) -> float:
    right, mine = reference[0].argmax(0), candidate[0].argmax(0)
    ratios = []
    for kind in np.unique(right):
        ratios.append(((right == kind) & (mine == kind)).sum() / ((right == kind) | (mine == kind)).sum())
    return float(np.mean(ratios))
