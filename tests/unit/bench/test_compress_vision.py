"""What the bench counts, on cases that can be worked out by hand; its rivals where they are installed are run by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.bench.compress_vision_labels import boxed, drivable, mean_iou
from codriver.optimize.vision.pictures import Feed, parse_look
from codriver.optimize.vision.static import runtime_default
from codriver.optimize.vision.tasks import Boxes
from tests.unit.optimize.vision_graphs import classifier, pictures, saved


def test_boxes_are_held_against_labels_per_pixel_in_the_picture_as_it_is() -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[0:10, 0:20] = 8  # a car: 200 pixels
    labels[0:4, 30:40] = 9  # a person: 40 pixels
    feed = Feed("images", 80, 80, False, parse_look("rgb 0..1"))  # twice the picture's size, grey below it
    corners = np.array([[0, 0, 40, 40], [60, 0, 80, 8], [0, 0, 80, 40]], np.float32)
    found = Boxes(corners, np.ones(3, np.float32), np.array([2, 0, 15]))  # a car too high, the person, a cat
    counts = boxed(found, labels, feed)
    assert counts.tolist() == [[200, 400], [40, 40]]
    assert mean_iou(counts[None]) == pytest.approx((0.5 + 1) / 2)


def test_drivable_area_is_held_against_the_road_where_somebody_labelled() -> None:
    labels = np.full((20, 40), 0, np.uint8)
    labels[10:] = 3  # the road: 400 pixels
    labels[:5] = 11  # 200 that nobody labelled
    found = np.zeros((40, 40), bool)  # the net's input: twice as high as the picture, stretched
    found[10:30] = True  # rows 5 to 15 of the picture: 200 of the road, and 200 above it
    feed = Feed("images", 40, 40, False, parse_look("rgb 0..1 stretch"))
    counts = drivable(found, labels, feed)
    assert counts.tolist() == [[200, 600], [0, 400]]
    assert mean_iou(counts[None]) == pytest.approx(1 / 6)


def test_the_runtimes_own_way_makes_a_file_that_is_smaller(tmp_path: Path) -> None:
    source, target = saved(classifier(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    feed = Feed("images", 32, 32, False, parse_look("rgb 0..1"))
    runtime_default(source, target, [feed.read(file) for file in pictures(tmp_path / "p", 3)])
    assert b"QuantizeLinear" in target.read_bytes()
