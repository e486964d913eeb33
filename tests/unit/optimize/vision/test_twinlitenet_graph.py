"""TwinLiteNet's checkpoint without torch: the published one on a road photo, and files that are none."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codriver.core.errors import BadModelFile, MissingFile
from codriver.optimize.vision.graph import outputs_of
from codriver.optimize.vision.onnx_file import read_model
from codriver.optimize.vision.pictures import feed_of
from codriver.optimize.vision.torch_checkpoint import read_checkpoint
from codriver.optimize.vision.twinlitenet_graph import OUTPUTS

Shared = Callable[[str], Path]


class _Storage:
    """Pickled as torch does a storage: by a persistent id."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


class _Global:
    def __init__(self, name: str) -> None:
        self.name = name


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> None:
        self.given = (storage, offset, shape, steps, False, OrderedDict())


class _Pickler(pickle._Pickler):
    """Writes what torch would, without torch. The names of the globals are told, not looked up."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Global):
            self.write(b"c" + obj.name.replace(" ", "\n").encode() + b"\n")  # type: ignore[attr-defined]
        elif isinstance(obj, _Storage):
            self.save(("storage", _Global(f"torch {obj.kind}"), obj.key, "cuda:0", obj.count))
            self.write(b"Q")  # type: ignore[attr-defined]
        elif isinstance(obj, _Tensor):
            self.save(_Global("torch._utils _rebuild_tensor_v2"))
            self.save(obj.given)
            self.write(b"R")  # type: ignore[attr-defined]
        else:
            super().save(obj, save_persistent_id)  # type: ignore[misc]


def checkpoint(file: Path, table: Any, data: dict[str, bytes]) -> Path:
    told = io.BytesIO()
    _Pickler(told, 2).dump(table)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", told.getvalue())
        for key, raw in data.items():
            archive.writestr(f"archive/data/{key}", raw)
    return file


def test_strided_tensors_that_share_a_storage_come_out_as_they_are_meant(tmp_path: Path) -> None:
    storage = _Storage("FloatStorage", "7", 12)
    table = OrderedDict(a=_Tensor(storage, 0, (3, 4), (4, 1)), turned=_Tensor(storage, 1, (2, 3), (2, 4)))
    found = read_checkpoint(checkpoint(tmp_path / "a.pth", table, {"7": np.arange(12, dtype="<f4").tobytes()}))
    assert found["a"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert found["turned"].tolist() == [[1, 5, 9], [3, 7, 11]]


def test_a_pickle_is_read_and_nothing_in_it_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    for table in ({"a": Hostile()}, Hostile()):
        with pytest.raises(BadModelFile, match=r"byte \d+ of its table names '.*', which is not run"):
            read_checkpoint(checkpoint(tmp_path / "a.pth", table, {}))
    assert not (tmp_path / "ran").exists()


def test_what_is_no_table_of_tensors_is_refused_by_name(tmp_path: Path) -> None:
    def refused(table: Any, data: dict[str, bytes], match: str) -> None:
        with pytest.raises(BadModelFile, match=match):
            read_checkpoint(checkpoint(tmp_path / "net.pth", table, data))

    four = _Storage("FloatStorage", "0", 4)
    refused([1], {}, r"net\.pth is no checkpoint of plain tensors: byte \d+ of its table: the operation EMPTY_LIST")
    refused({"a": 1}, {}, r"a table of tensors is expected, and a is none")
    refused(
        {"a": _Tensor(four, 0, (4,), (1,))}, {"0": b"1234"}, r"'a' of .* needs 16 bytes, and the file holds 4 bytes"
    )
    refused({"a": _Tensor(four, 0, (4,), (1,))}, {}, r"'a' of .* needs 16 bytes, and the file holds nothing")
    refused({"a": _Tensor(four, 1, (4,), (1,))}, {"0": bytes(16)}, r"shape \(4,\) lies beyond its 4 values")
    refused({"a": _Tensor(four, 0, (1 << 20, 1 << 20), (0, 0))}, {"0": bytes(16)}, r"lies beyond its 4 values")
    refused({"a": _Tensor(four, -1, (4,), (1,))}, {"0": bytes(16)}, "it describes no tensor")
    huge = _Storage("DoubleStorage", "0", 1 << 60)
    refused({"a": _Tensor(huge, 0, (4,), (1,))}, {}, r"a storage of [\d,]+ values is more than is read")
    with pytest.raises(MissingFile, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadModelFile, match=r"net\.pth is no checkpoint of plain tensors: File is not a zip file"):
        read_checkpoint(tmp_path / "net.pth")


def test_few_numbers_cannot_fill_the_memory(tmp_path: Path) -> None:
    """Each tensor is within bounds, and all of one storage: a hundred of them would take 25 GB."""
    table = {f"w{at}": _Tensor(_Storage("FloatStorage", "7", 1), 0, (8000, 8000), (0, 0)) for at in range(100)}
    file = checkpoint(tmp_path / "net.pth", table, {"7": bytes(4)})
    with pytest.raises(BadModelFile, match=r"The tensors of .*net\.pth take more than the 1,073,741,824 bytes"):
        read_checkpoint(file)


def test_a_hurt_checkpoint_is_read_or_refused_and_never_more(tmp_path: Path) -> None:
    storage = _Storage("FloatStorage", "7", 12)
    table = {f"t{at}": _Tensor(storage, 0, (3, 4), (4, 1)) for at in range(5)}
    whole = checkpoint(tmp_path / "a.pth", table, {"7": bytes(48)}).read_bytes()
    dice, file, refused = random.Random(1), tmp_path / "hurt.pth", 0
    for at in range(400):
        raw = bytearray(whole[: dice.randrange(len(whole))] if at % 4 == 0 else whole)
        for _ in range(dice.randrange(1, 6)):
            if raw:
                raw[dice.randrange(len(raw))] = dice.randrange(256)
        file.write_bytes(bytes(raw))
        try:
            read_checkpoint(file)
        except BadModelFile as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > 100


def test_no_operation_of_a_pickle_is_skipped(tmp_path: Path) -> None:
    """A machine that skipped one would give tensors that nobody saved."""
    for operation in pickletools.opcodes:
        if operation.arg is None and operation.name != "EMPTY_DICT":
            with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
                archive.writestr("archive/data.pkl", operation.code.encode("latin-1") + b".")
            with pytest.raises(BadModelFile, match=r"a\.pth is no"):
                read_checkpoint(tmp_path / "a.pth")


def test_the_road_ahead_is_drivable_and_the_sky_is_not(shared_data: Shared) -> None:
    folder = shared_data("vision/twinlitenet")
    model = read_model(folder / "best.pth")
    assert tuple(one.name for one in model.graph.output) == OUTPUTS
    picture = feed_of(model, folder / "best.pth").read(folder / "caeb782d-4a20b7c4.jpg")
    ((drivable, lanes),) = (scores for scores in outputs_of(model.SerializeToString(), [picture]))
    road, line = drivable[0].argmax(0), lanes[0].argmax(0)
    assert road[200:290, 280:360].mean() > 0.9 and road[:90].mean() < 0.01
    assert 0.001 < line.mean() < 0.2 and line[:90].mean() < 0.01
    # An attention that adds 4e-20 of something to its input is left out.
    assert not [node for node in model.graph.node if node.output[0].startswith("encoder.sa.")]
    assert [node for node in model.graph.node if node.output[0].startswith("encoder.sc.")]


def test_a_checkpoint_of_another_net_is_refused_by_its_first_odd_tensor(tmp_path: Path) -> None:
    storage = _Storage("FloatStorage", "0", 4)
    other = checkpoint(tmp_path / "net.pth", {"a": _Tensor(storage, 0, (4,), (1,))}, {"0": bytes(16)})
    with pytest.raises(BadModelFile, match=r"net\.pth is no TwinLiteNet: it has no tensor encoder\.level1\.bn\.weight"):
        read_model(other)
