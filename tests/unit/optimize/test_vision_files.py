"""ONNX files that nobody vouches for, pictures that are none, and Darknet's two files: what is refused, and how."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codriver.core.errors import BadConfigValue, BadModelFile, CodriverError, MissingFile
from codriver.optimize.vision.darknet import read_darknet
from codriver.optimize.vision.graph import outputs_of
from codriver.optimize.vision.onnx_file import read_onnx, refuse_unusable
from codriver.optimize.vision.pictures import Feed, Look, feed_of, parse_look, pictures_in

from .vision_graphs import classifier, pictures, saved


def test_a_cut_or_flipped_onnx_file_is_read_or_refused_by_name_and_never_more(tmp_path: Path) -> None:
    whole, dice, refused = classifier().SerializeToString(), random.Random(1), 0
    file = tmp_path / "hurt.onnx"
    for at in range(300):
        raw = bytearray(whole[: dice.randrange(len(whole))] if at % 3 == 0 else whole)
        for _ in range(dice.randrange(1, 6)):
            raw[dice.randrange(len(raw))] = dice.randrange(256) if raw else 0
        file.write_bytes(bytes(raw))
        try:
            read_onnx(file)
        except BadModelFile as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > 100


def test_the_dimensions_of_a_tensor_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    model = classifier()
    model.graph.initializer[0].dims[0] = 1 << 40
    with pytest.raises(BadModelFile, match=r"The tensor 'one.w' of .*huge.onnx declares [\d,]+ values; that is more"):
        read_onnx(saved(model, tmp_path / "huge.onnx"))
    model = classifier()
    model.graph.initializer[0].dims[0] = 8
    with pytest.raises(BadModelFile, match=r"The tensor 'one.w' of .* is damaged"):
        read_onnx(saved(model, tmp_path / "short.onnx"))
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 31
    with pytest.raises(BadModelFile, match=r"The value 'images' of .* declares a shape of [\d,]+ values or more"):
        read_onnx(saved(model, tmp_path / "wide.onnx"))


def test_a_file_that_refers_to_another_is_refused_wherever_that_is(tmp_path: Path) -> None:
    for where in ("../../etc/passwd", "/etc/passwd", "beside.bin"):
        model = classifier()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=where)
        with pytest.raises(BadModelFile, match=rf"'one.w' of .* keeps its data in another file, '{where}'"):
            read_onnx(saved(model, tmp_path / "outside.onnx"))


def test_what_takes_the_runtime_too_much_costs_a_sentence_and_not_the_process(tmp_path: Path) -> None:
    """2^35 floats, made as the graph runs: no shape in the file says so."""
    shape = numpy_helper.from_array(np.array([1, 1 << 35], np.int64), "shape")
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["zero"], to=TensorProto.INT64),
        helper.make_node("Add", ["shape", "zero"], ["runtime.shape"]),
        helper.make_node("ConstantOfShape", ["runtime.shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["out"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "bomb",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    file = saved(model, tmp_path / "bomb.onnx")
    with pytest.raises(BadModelFile, match=r"The graph .*bomb.onnx does not run: "):
        refuse_unusable(file)
    refuse_unusable(saved(classifier(), tmp_path / "fine.onnx"))


def test_an_input_that_is_no_picture_or_of_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = classifier()
    del model.metadata_props[:]
    with pytest.raises(BadConfigValue, match=r"does not say how pictures go in; say it with --look: 'rgb' or 'bgr'"):
        feed_of(model, file)
    assert feed_of(model, file, "bgr 0..255").look == Look(True, "0..255")
    model.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value")
    with pytest.raises(BadModelFile, match=r"images \[1, 3, '\?', 32\] of .* has no fixed height and width"):
        feed_of(model, file, "rgb 0..1")
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    with pytest.raises(BadModelFile, match=r"The input images \[1, 4, 32, 32\] of .* is no picture"):
        feed_of(model, file)
    with pytest.raises(BadConfigValue, match=r"'rgb 0\.\.2' does not say how pictures go in"):
        parse_look("rgb 0..2")


def test_pictures_go_in_as_the_look_says(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 4), (255, 0, 51)).save(tmp_path / "red.png")
    read = Feed("images", 8, 8, False, parse_look("rgb 0..1")).read(tmp_path / "red.png")
    assert read.shape == (1, 3, 8, 8) and read[0, :, 0, 0] == pytest.approx([1, 0, 0.2])
    assert read[0, :, 7, 7] == pytest.approx([114 / 255] * 3), "below the picture is padding"
    read = Feed("images", 8, 8, True, parse_look("bgr 0..255 stretch")).read(tmp_path / "red.png")
    assert read.shape == (1, 8, 8, 3) and read[0, 7, 7].tolist() == [51, 0, 255]


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    feed = Feed("images", 8, 8, False, parse_look("rgb 0..1"))
    with pytest.raises(MissingFile, match=r"The folder of pictures .*nowhere does not exist"):
        pictures_in(tmp_path / "nowhere")
    with pytest.raises(BadConfigValue, match=r"has no pictures \(.png"):
        pictures_in(tmp_path)
    (tmp_path / "no.png").write_bytes(b"not a picture")
    with pytest.raises(BadConfigValue, match=r"no.png is no picture that can be decoded"):
        feed.read(tmp_path / "no.png")
    (whole,) = pictures(tmp_path / "p", 1)
    whole.write_bytes(whole.read_bytes()[:90])
    with pytest.raises(BadConfigValue, match=r"The picture .*00.png cannot be decoded: "):
        feed.read(whole)


# ---------------------------------------------------------------- Darknet

CFG = """[net]
width=32
height=32
channels=3
learning_rate=0.1
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[route]
layers=-1
groups=2
group_id=1
[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1
anchors=4,6, 10,12
classes=2
scale_x_y=1.05
"""


def darknet(folder: Path, cfg: str = CFG, cut: int | None = None) -> Path:
    count = 4 * 8 + 8 * 3 * 9 + 14 + 14 * 4
    values = np.random.default_rng(2).uniform(0.1, 1, count).astype("<f4")
    raw = struct.pack("<iiiQ", 0, 2, 5, 7) + values.tobytes()
    (folder / "net.cfg").write_text(cfg)
    (folder / "net.weights").write_bytes(raw[:cut])
    return folder / "net.weights"


def test_a_darknet_network_computes_what_its_arithmetic_says(tmp_path: Path) -> None:
    """Against the same layers written out in NumPy, one output at a time."""
    model = read_darknet(darknet(tmp_path))
    picture = np.random.default_rng(4).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)
    ((output,),) = outputs_of(model.SerializeToString(), [picture])
    raw = np.fromfile(tmp_path / "net.weights", "<f4", offset=20)
    bias, gamma, mean, variance = raw[:32].reshape(4, 8)
    kernel, rest = raw[32:248].reshape(8, 3, 3, 3), raw[248:]
    padded = np.pad(picture[0], ((0, 0), (1, 1), (1, 1)))
    seen = np.stack([[np.einsum("oikl,ikl->o", kernel, padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3])
                      for x in range(16)] for y in range(16)]).transpose(2, 0, 1)  # fmt: skip
    normed = gamma[:, None, None] * (seen - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    active = normed + bias[:, None, None]
    active = np.where(active > 0, active, 0.1 * active)
    # A window of 2 at stride 2; Darknet pads one more pixel at the right and below, which 16 pixels never reach.
    pooled = active.reshape(8, 8, 2, 8, 2).max((2, 4))[4:]
    head = np.einsum("oi,iyx->oyx", rest[14:].reshape(14, 4), pooled) + rest[:14][:, None, None]
    unit = 1 / (1 + np.exp(-head))
    assert output.shape == (1, 128, 7)
    row, y, x = 64 + 8 * 3 + 5, 3, 5  # the second anchor's box in that cell
    assert output[0, row, 0] == pytest.approx((unit[7, y, x] * 1.05 - 0.025 + x) * 4, rel=1e-4)
    assert output[0, row, 1] == pytest.approx((unit[8, y, x] * 1.05 - 0.025 + y) * 4, rel=1e-4)
    assert output[0, row, 2] == pytest.approx(np.exp(head[9, y, x]) * 10, rel=1e-4)
    assert output[0, row, 3] == pytest.approx(np.exp(head[10, y, x]) * 12, rel=1e-4)
    assert output[0, row, 4:] == pytest.approx(unit[11:14, y, x], rel=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "[maxpool]",
            "[gru]",
            r"Layer 1 \[gru\] of .*net.cfg, line 13: it is of a kind that is not known; known: conv",
        ),
        ("activation=leaky", "activation=gelu", r"Layer 0 \[convolutional\] .* its activation 'gelu' is not known"),
        ("filters=8", "filters=900000000", r"'filters' is 900000000; it may be 1 to 16384"),
        ("width=32", "width=99999999", r"\[net\] of .*'width' is 99999999; it may be 1 to 4096"),
        ("layers=-1", "layers=7", r"Layer 2 \[route\] .* it names the layer 7, which is not before it"),
        ("classes=2", "classes=3", r"Layer 4 \[yolo\] .* 2 anchors with 3 classes take 16 channels, not 14"),
        ("mask=0,1", "mask=0,9", r"its mask names anchors that it does not have"),
        ("stride=2\npad=1", "stride=2\nsparkle=1", r"it has a setting that is not known: 'sparkle'"),
        ("groups=2", "groups=3", r"8 channels cannot be split into 3 groups"),
        ("[net]", "[nut]", r"net.cfg is no Darknet .cfg: it does not begin with \[net\]"),
    ],
)
def test_a_cfg_that_is_not_understood_is_refused_by_layer_and_line(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    with pytest.raises(BadModelFile, match=told):
        read_darknet(darknet(tmp_path, CFG.replace(old, new, 1)))


def test_weights_that_are_cut_or_too_long_are_refused_by_layer_and_byte(tmp_path: Path) -> None:
    told = r"net.weights ends within the weights of layer 0 \(convolutional\): they take 864 bytes at byte 148, and the"
    with pytest.raises(BadModelFile, match=told):
        read_darknet(darknet(tmp_path, cut=600))
    with pytest.raises(BadModelFile, match="ends within its header, at byte 9"):
        read_darknet(darknet(tmp_path, cut=9))
    file = darknet(tmp_path)
    file.write_bytes(file.read_bytes() + bytes(8))
    with pytest.raises(BadModelFile, match=r"goes on behind its last layer: 8 bytes at byte 1,292"):
        read_darknet(file)
    raw = bytearray(file.read_bytes()[:-8])
    raw[500:504] = struct.pack("<f", float("nan"))
    file.write_bytes(bytes(raw))
    with pytest.raises(BadModelFile, match=r"The weights of layer 0 .* are not all numbers: see byte 500"):
        read_darknet(file)
    with pytest.raises(MissingFile, match=r"its .cfg file, and .*other.cfg does not exist"):
        read_darknet(file, tmp_path / "other.cfg")


def test_darknet_files_with_flipped_bytes_are_read_or_refused(tmp_path: Path) -> None:
    dice = random.Random(3)
    for _ in range(60):
        file = darknet(tmp_path, cut=dice.choice([None, dice.randrange(1, 1300)]))
        cfg = bytearray(CFG.encode())
        cfg[dice.randrange(len(cfg))] = dice.randrange(256)
        (tmp_path / "net.cfg").write_bytes(bytes(cfg))
        try:
            onnx.checker.check_model(read_darknet(file))
        except CodriverError as error:
            assert "net." in str(error)


@pytest.mark.model
def test_a_real_darknet_detector_finds_cars_on_a_road(
    model_file: Callable[[str], Path], shared_data: Callable[[str], Path]
) -> None:
    from codriver.optimize.vision.tasks import task_of

    model = read_darknet(model_file("yolov4-tiny.weights"), model_file("yolov4-tiny.cfg"))
    feed = feed_of(model, Path("yolov4-tiny.weights"))
    picture = feed.read(shared_data("vision/camvid") / "test" / "Seq05VD_f02370.png")
    ((output,),) = outputs_of(model.SerializeToString(), [picture])
    found = task_of(model, feed.height, feed.width).boxes([output]).sure()
    assert len(found.scores) >= 2 and set(found.classes.tolist()) <= {0, 1, 2, 3, 5, 7, 9}
