from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from codriver.apps.cli.main import app
from codriver.core.artifact import Measured, save_artifact
from codriver.core.errors import BadConfigValue, BadModelFile, MissingFile
from tests.unit.core.test_artifact import made
from tests.unit.engines.gguf_files import write_gguf
from tests.unit.optimize.tiny_models import write_tiny
from tests.unit.optimize.vision_graphs import classifier, pictures, saved

RUN = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = [("blk.0.attn_q.weight", (576, 2), 6, bytes(2 * 396)), ("n.weight", (576,), 0, bytes(2304))]
    return write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", "general.file_type": 15}, tensors)


def test_inspect_tells_what_is_in_a_file(file: Path) -> None:
    told = RUN.invoke(app, ["optimize", "inspect", str(file), "--tensors"])
    assert told.exit_code == 0, told.output
    assert "m.gguf: llama, Q4_K_M, 0.0 M weights" in told.output
    assert "blk.0.attn_q.weight" in told.output and "576 × 2" in told.output
    assert "1 tensors hold Q5_0 in place of Q4_K" in told.output
    as_json = json.loads(RUN.invoke(app, ["optimize", "inspect", str(file), "--json"]).output)
    assert as_json["substitutions"] == [
        {"tensor": "blk.0.attn_q.weight", "wanted": "Q4_K", "stored": "Q5_0", "bytes": 144}
    ]


def test_a_name_that_looks_like_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", {}, [("[/bold][red]w", (32,), 0, bytes(128))])
    told = RUN.invoke(app, ["optimize", "inspect", str(file), "--tensors"])
    assert told.exit_code == 0 and "[/bold][red]w" in told.output


def test_inspect_knows_the_catalogue(model_file: Callable[[str], Path]) -> None:
    model_file("smollm2.gguf")
    told = RUN.invoke(app, ["optimize", "inspect", "smollm2-135m-instruct-q4_1"])
    if isinstance(told.exception, MissingFile):
        pytest.skip("the catalogue's model is not pulled here")
    assert "takes 5.74 bits per weight" in told.output


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["inspect", "nowhere.gguf"], MissingFile, "nowhere.gguf does not exist"),
        (["compare", "{folder}"], MissingFile, r"is no artifact: it has no artifact\.json"),
        (["evaluate", "{file}", "--text", "nowhere.txt"], MissingFile, r"text nowhere\.txt does not exist"),
        (["evaluate", "{file}", "--text", "{file}"], BadConfigValue, "is not a text in UTF-8"),
        (["evaluate", "{file}", "--pictures", "{folder}"], BadConfigValue, r"binary\.gguf is a language model"),
        (["evaluate", "a/b.onnx", "--text", "{text}"], BadConfigValue, r"b\.onnx is a vision model: it is scored on"),
        (["evaluate", "a/b.onnx", "--pictures", "{folder}"], BadConfigValue, r"folder has no pictures"),
        (["evaluate", "{file}"], BadConfigValue, "What is scored"),
        (["evaluate", "{file}", "--tasks", "mmlu"], BadConfigValue, "Where is the task set 'mmlu'"),
        (["evaluate", "{file}", "--tasks", "a=x", "--tasks", "a=y"], BadConfigValue, "Two task sets have the name 'a'"),
        (["evaluate", "{file}", "--tasks", "a=nowhere"], MissingFile, "task set 'a' is not at nowhere"),
        (
            ["evaluate", "{file}", "--text", "{text}", "--cache-k", "q9_0"],
            BadConfigValue,
            "cache's keys cannot be 'q9_0'; allowed: f32, f16",
        ),
        (
            ["evaluate", "{file}", "--text", "{text}", "--cells", "512"],
            BadConfigValue,
            "shows in a long text only: say how many tokens to --read",
        ),
        (
            ["evaluate", "{file}", "--text", "{text}", "--attended", "--read", "512"],
            BadConfigValue,
            "What is looked at is chosen for a number of --cells",
        ),
        (
            ["{file}", "--require", "speed>=1", "--calibration", "{file}", "--scored", "{file}", "--out", "{folder}/o"],
            BadConfigValue,
            "there is no metric 'speed'",
        ),
        (
            ["--require", "kl<=1", "--calibration", "{file}", "--scored", "{file}", "--out", "{folder}/o", "{file}"],
            BadConfigValue,
            "text for calibration and the scored one are the same file",
        ),
    ],
)
def test_what_cannot_be_done_is_told(
    file: Path, tmp_path: Path, arguments: list[str], error: type[Exception], told: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    binary = tmp_path / "binary.gguf"
    binary.write_bytes(b"\xff\xfe" + file.read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("Words.")
    line = [one.format(file=binary, folder=folder, text=text) for one in arguments]
    ended = RUN.invoke(app, ["optimize", *line])
    assert isinstance(ended.exception, error), ended.output
    with pytest.raises(error, match=told):
        raise ended.exception


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(BadModelFile, match=r"x\.gguf is not a usable GGUF file: it does not begin with"):
        RUN.invoke(app, ["optimize", "inspect", str(tmp_path / "x.gguf")], catch_exceptions=False)


def test_artifacts_stand_side_by_side(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    save_artifact(made(folder, file.read_bytes()), folder)
    told = RUN.invoke(app, ["optimize", "compare", str(folder), str(file)])
    assert told.exit_code == 0, told.output
    lines = {line.split()[0]: line.split()[1:] for line in told.output.splitlines() if line.strip()}
    assert lines["kl"] == ["0.05", "–"]
    assert lines["size"][0] == lines["size"][1]


def test_what_was_predicted_says_so_in_the_table(tmp_path: Path, file: Path) -> None:
    note = "predicted for raspberry-pi-5, error on the host ±7 %"
    rows = {"here": Measured("ttft_ms@64", 12.5, "ms", 5), "there": Measured("ttft_ms@64", 11.5, "ms", 0, note=note)}
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        artifact = made(tmp_path / name, file.read_bytes())
        save_artifact(msgspec.structs.replace(artifact, card=(row,)), tmp_path / name)
    told = RUN.invoke(app, ["optimize", "compare", *(str(tmp_path / name) for name in rows)])
    (line,) = [line for line in told.output.splitlines() if "ttft_ms@64" in line]
    assert line.strip().split(maxsplit=2) == ["ttft_ms@64", "12.5", f"11.5 ({note})"]


def test_task_sets_are_asked_of_a_file_and_of_its_reference(tmp_path: Path) -> None:
    model, own = write_tiny(tmp_path / "tiny.gguf", "llama", "Q8_0"), tmp_path / "own.jsonl"
    rows = [{"question": f"Is {n} even?", "choices": ["yes", "no"], "answer": "AB"[n % 2]} for n in range(6)]
    own.write_text("\n".join(map(json.dumps, rows)))
    asked = ["optimize", "evaluate", str(model), "--tasks", f"own={own}", "--questions", "4", "--threads", "1"]
    told = RUN.invoke(app, [*asked, "--reference", str(model)])
    assert told.exit_code == 0, told.output
    lines = {line.split()[0]: line.split()[1:] for line in told.output.splitlines() if line.startswith(" ")}
    assert {name: of[0] for name, of in lines.items() if name.startswith("own_")} == {
        "own_change": "0", "own_flips": "0", "own_same": "1",
    }  # fmt: skip
    assert lines["own"][4] == "4" and "chance 0.5, 0 examples, by letter, 4 of 6 questions, seed 0" in told.output
    assert "ppl" not in told.output, "without a text only task sets are asked"


def test_a_vision_file_goes_its_own_way(tmp_path: Path) -> None:
    """By the same verb: what is missing is said, what is not met ends with 3, and artifacts are compared. In processes
    of their own, as the command is: two runtimes' threads stay in one that ran them.
    """

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "codriver", "optimize", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        return done.returncode, done.stdout + done.stderr

    file, out, other = saved(classifier(), tmp_path / "net.onnx"), tmp_path / "out", tmp_path / "other"
    folder = pictures(tmp_path / "p")[0].parent
    code, told = run(file, "--out", out, "--require", "agreement>=0.1")
    assert code == 2 and "A vision model needs a folder of pictures: --pictures FOLDER." in told
    how = ("--threads", 1, "--pictures", folder)
    code, told = run(file, "--out", out, *how, "--require", "agreement>=0.1", "--licence", "MIT")
    assert code == 0 and "measured in " in told and "latency_ratio" in told, told
    assert json.loads((out / "artifact.json").read_text())["licence"] == "MIT"
    code, told = run("compare", out, file)
    assert code == 0 and "agreement" in told, told
    code, told = run(file, "--out", other, *how, "--require", "size<=1B")
    assert code == 3 and "No artifact meets size<=1" in told
    assert (other / "artifact.json").exists()
