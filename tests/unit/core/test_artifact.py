from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from codriver.core.artifact import Artifact, ArtifactFile, Measured, load_artifact, save_artifact, sha256_of
from codriver.core.errors import BadModelFile, MissingFile


def made(folder: Path, content: bytes = b"weights") -> Artifact:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return Artifact(
        name="a car's model",
        files=(ArtifactFile("model.gguf", "gguf", len(content), sha256_of(file)),),
        bits_per_weight=5.2,
        target="host",
        lineage=("sha256:abc", "rounded"),
        licence="Apache-2.0",
        card=(Measured("kl", 0.05, "nats/token", 255, 0.04, 0.06),),
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    save_artifact(artifact, tmp_path)
    assert load_artifact(tmp_path) == artifact
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact.json", "model.gguf"]


def test_an_artifact_without_a_measured_card_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an artifact needs a measured card"):
        save_artifact(msgspec.structs.replace(made(tmp_path), card=()), tmp_path)
    assert not (tmp_path / "artifact.json").exists()


def test_another_file_than_the_measured_one_is_refused(tmp_path: Path) -> None:
    save_artifact(made(tmp_path), tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"Weights")
    with pytest.raises(BadModelFile, match=r"model\.gguf is not the one that was measured: its sha256 differs"):
        load_artifact(tmp_path)
    assert load_artifact(tmp_path, check=False).name == "a car's model"
    (tmp_path / "model.gguf").write_bytes(b"cut")
    with pytest.raises(BadModelFile, match="not the one that was measured"):
        load_artifact(tmp_path, check=False)
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(MissingFile, match=r"lacks its file model\.gguf"):
        load_artifact(tmp_path)


def test_a_folder_without_a_manifest_or_with_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"is no artifact: it has no artifact\.json"):
        load_artifact(tmp_path)
    (tmp_path / "artifact.json").write_bytes(b'{"name": 3}')
    with pytest.raises(BadModelFile, match=r"manifest .*artifact\.json is not valid: Expected `str`, got `int`"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ""])
def test_no_manifest_reaches_outside_its_folder(tmp_path: Path, name: str) -> None:
    artifact = made(tmp_path)
    files = (msgspec.structs.replace(artifact.files[0], name=name),)
    save_artifact(msgspec.structs.replace(artifact, files=files), tmp_path)
    with pytest.raises(BadModelFile, match="names a file outside its folder"):
        load_artifact(tmp_path)
