"""CamVid's human labels per pixel, as the judge of what a vision model finds.

Of boxes: the intersection over union of the labelled pixels of vehicles and of people with the union of the boxes found
(scores of 0.3 and more). A box covers more than its object, so that 1 is out of reach; it is the same for all systems.
Of drivable area: intersection over union with the road, and of all that is not road with the rest; pixels that nobody
labelled count in neither. Both are read at the labels' own resolution, and summed over pictures before they are
divided. Classes: Badrinarayanan et al. 2017 (SegNet), eleven and one for what is not labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codriver.optimize.vision.pictures import Feed
from codriver.optimize.vision.tasks import Boxes, Task

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
SURE = 0.3
# COCO's classes that are CamVid's: car, motorcycle, bus, truck; person.
_GROUPS = (((8,), (2, 3, 5, 7)), ((9, 10), (0,)))
_ROAD, _UNLABELLED = 3, 11


def labels_of(file: Path) -> NDArray[np.uint8]:
    """CamVid's classes by pixel, as the picture is."""
    from PIL import Image

    with Image.open(file.parent.with_name(f"{file.parent.name}annot") / file.name) as opened:
        return np.array(opened, np.uint8)


def counted(task: Task, outputs: Sequence[Floats], labels: NDArray[np.uint8], feed: Feed) -> Counts:
    """(groups, 2): pixels in both, and in either. A net of pixels: its first output is of the drivable area."""
    if task.finds_boxes:
        return boxed(task.boxes(outputs).sure(SURE), labels, feed)
    return drivable(outputs[0][0].argmax(0) == 1, labels, feed)


def boxed(found: Boxes, labels: NDArray[np.uint8], feed: Feed) -> Counts:
    """(vehicles and people, 2)."""
    height, width = labels.shape
    wide, high = feed.scaled(width, height)
    corners = np.rint(found.corners * np.array([width / wide, height / high] * 2)).astype(int)
    counts = []
    for labelled, classes in _GROUPS:
        covered = np.zeros(labels.shape, bool)
        for left, top, right, bottom in corners[np.isin(found.classes, classes)]:
            covered[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
        truth = np.isin(labels, labelled)
        counts.append([int((covered & truth).sum()), int((covered | truth).sum())])
    return np.array(counts, np.int64)


def drivable(found: NDArray[np.bool_], labels: NDArray[np.uint8], feed: Feed) -> Counts:
    """(road and the rest, 2). ``found``: (height, width) of the net's input, read at the place of each label."""
    height, width = labels.shape
    wide, high = feed.scaled(width, height)
    rows = ((np.arange(height) + 0.5) * high / height).astype(int)
    columns = ((np.arange(width) + 0.5) * wide / width).astype(int)
    road, told = labels == _ROAD, labels != _UNLABELLED
    mine = found[rows[:, None], columns[None]]
    pairs = ((mine, road), (~mine, ~road))
    return np.array([[int((a & b & told).sum()), int(((a | b) & told).sum())] for a, b in pairs], np.int64)


def mean_iou(counts: Counts) -> float:
    """Over pictures (n, groups, 2), then the mean of the groups."""
    sums = counts.sum(0)
    return float((sums[:, 0] / np.maximum(1, sums[:, 1])).mean())
