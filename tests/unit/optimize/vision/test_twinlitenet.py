"""TwinLiteNet in plain torch with its published weights, on real road photos; and files that are no checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch==2.13.0")
pytest.importorskip("PIL", reason="needs pillow")

import torch

from codriver.optimize.vision.twinlitenet import OUTPUTS, TwinLiteNet, load, photo

Shared = Callable[[str], Path]


def test_the_road_ahead_is_drivable_and_the_sky_is_not(shared_data: Shared) -> None:
    folder = shared_data("vision/twinlitenet")
    net = load(folder / "best.pth")
    picture = photo(folder / "caeb782d-4a20b7c4.jpg")
    assert picture.shape == (1, 3, 360, 640) and 0 <= float(picture.min()) < float(picture.max()) <= 1
    with torch.no_grad():
        masks = dict(zip(OUTPUTS, (scores.argmax(1)[0] for scores in net(picture)), strict=True))
    road, sky = masks["drivable"][200:290, 280:360].float().mean(), masks["drivable"][:90].float().mean()
    assert road > 0.9 and sky < 0.01, (road, sky)
    assert 0.001 < masks["lanes"].float().mean() < 0.2
    assert masks["lanes"][:90].float().mean() < 0.01


def test_what_is_no_checkpoint_is_said_by_name_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    file = tmp_path / "net.pth"
    state = TwinLiteNet().state_dict()
    torch.save({"module.encoder": Hostile()}, file)
    with pytest.raises(ValueError, match=r"net\.pth is no checkpoint of plain tensors"):
        load(file)
    file.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"net\.pth is no checkpoint of plain tensors"):
        load(file)
    assert not marker.exists()

    whole = tmp_path / "whole.pth"
    torch.save(state, whole)
    file.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"net\.pth is no checkpoint of plain tensors"):
        load(file)
    torch.save({name: tensor for name, tensor in state.items() if name != "encoder.b1.bn.weight"}, file)
    with pytest.raises(ValueError, match=r"no TwinLiteNet: it has no tensor encoder\.b1\.bn\.weight"):
        load(file)
    torch.save(state | {"encoder.sc.gamma": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"encoder\.sc\.gamma has shape \(2,\), not \(1,\)"):
        load(file)
    torch.save(state | {"head.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"a tensor head\.weight, which the net does not know"):
        load(file)
    with pytest.raises(ValueError, match=r"net\.pth is no photo"):
        photo(file)
