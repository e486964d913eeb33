"""The tokenizer of a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``, which other runtimes read.

Byte-pair tokenizers (``gpt2`` in GGUF), whose way of splitting text is known by name: the patterns are llama.cpp's
(``llama-vocab.cpp``). The rule kept here: a way of splitting that is not known is refused by name, for tokens that are
only nearly the same make a model nearly deaf.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codriver.core.errors import BadModelFile

from .gguf_decoder import arrays
from .gguf_file import GgufFile

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_SPLITS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "qwen2": [_split(_WORDS + r"\p{N}" + _REST), _BYTES],
    "llama-bpe": [_split(_WORDS + r"\p{N}{1,3}" + _REST), _BYTES],
}


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Errors: :class:`BadModelFile` naming the metadata that is missing or of a kind that is not known."""
    told = file.header.metadata
    model, pre = told.get("tokenizer.ggml.model"), told.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in _SPLITS:
        raise BadModelFile(
            f"{file.path} has a tokenizer '{model}' that splits text as '{pre}'; only 'gpt2' ones that split as "
            f"{', '.join(sorted(_SPLITS))} are written."
        )
    lists = arrays(file)
    tokens, merges = lists.get("tokenizer.ggml.tokens"), lists.get("tokenizer.ggml.merges")
    kinds = lists.get("tokenizer.ggml.token_type")
    if not tokens or not merges or not kinds or len(kinds) != len(tokens):
        raise BadModelFile(f"{file.path} has no whole tokenizer: tokens, their types and merges belong together.")
    names = [str(token) for token in tokens]
    special = {at: names[at] for at, kind in enumerate(kinds) if kind in (_UNKNOWN, _CONTROL, _USER)}
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(at, text, kinds[at] != _USER) for at, text in special.items()],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[str(pre)]},
        "post_processor": None,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: at for at, text in enumerate(names)},
            "merges": merges,
        },
    }
    _write(folder / "tokenizer.json", whole)
    settings: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer"
        if pre in ("smollm", "gpt-2")
        else "Qwen2Tokenizer"
        if pre == "qwen2"
        else "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(at): {key: value for key, value in _added(at, text, kinds[at] != _USER).items() if key != "id"}
            for at, text in special.items()
        },
        "add_bos_token": bool(told.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": file.header.chat_template or None,
    }
    for key in ("bos", "eos", "unknown", "padding"):
        at = told.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(at, int) and 0 <= at < len(names):
            settings[f"{ {'unknown': 'unk', 'padding': 'pad'}.get(key, key) }_token"] = names[at]
    _write(folder / "tokenizer_config.json", settings)


def _added(at: int, text: str, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": at, "content": text, **plain, "special": special}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
