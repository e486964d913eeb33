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

from ..gguf_arrays import arrays
from ..gguf_file import GgufFile
from .gguf_writer import Value
from .json_file import read_json

_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")  # as llama.cpp knows them by name
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5
_MARKS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
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
        "normalizer": None,  # llama.cpp puts no characters together, either
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
    for key, short in _MARKS.items():
        at = told.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(at, int) and 0 <= at < len(names):
            settings[f"{short}_token"] = names[at]
    _write(folder / "tokenizer_config.json", settings)


def read_tokenizer(folder: Path, vocabulary: int) -> dict[str, Value]:
    """GGUF's metadata of the tokenizer in ``folder``, for ``vocabulary`` rows of the embedding.

    Errors: :class:`MissingFile`; :class:`BadModelFile` for a kind that is not known.
    """
    file = folder / "tokenizer.json"
    whole = read_json(file)
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    model, added = whole.get("model"), whole.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadModelFile(f"{file} is no tokenizer of byte pairs with a vocabulary.")
    pre = next((name for name, parts in _SPLITS.items() if _same_split(whole.get("pre_tokenizer"), parts)), None)
    if pre is None:
        raise BadModelFile(f"{file} splits text in a way that is none of {', '.join(sorted(_SPLITS))}.")
    names: list[str] = [f"[PAD{at}]" for at in range(vocabulary)]
    kinds = [_UNUSED] * vocabulary
    places = [(text, at, _NORMAL) for text, at in model["vocab"].items()]
    places += [(one["content"], one["id"], _CONTROL if one.get("special") else _USER) for one in added]
    for text, at, kind in places:
        if type(at) is not int or not 0 <= at < vocabulary:
            raise BadModelFile(
                f"{file} gives the token {str(text)[:32]!r} the number {at}; there are {vocabulary} rows."
            )
        names[at], kinds[at] = text, kind
    merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges", [])]
    found: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(settings.get("add_bos_token", False)),
    }
    for key, short in _MARKS.items():
        mark = settings.get(f"{short}_token")
        text = mark.get("content") if isinstance(mark, dict) else mark
        if isinstance(text, str) and text in names:
            found[f"tokenizer.ggml.{key}_token_id"] = names.index(text)
    if isinstance(settings.get("chat_template"), str):
        found["tokenizer.chat_template"] = settings["chat_template"]
    return found


def _same_split(told: Any, parts: list[dict[str, Any]]) -> bool:
    """Whether a tokenizer splits as ``parts`` do; what only concerns positions in the text does not count."""
    if not isinstance(told, dict):
        return False
    listed = told.get("pretokenizers") if told.get("type") == "Sequence" else [told]
    if not isinstance(listed, list) or len(listed) != len(parts):
        return False
    return all(isinstance(one, dict) and _bare(one) == _bare(part) for one, part in zip(listed, parts, strict=True))


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    usual = {"use_regex": True} if part.get("type") == "ByteLevel" else {}
    return usual | {key: value for key, value in part.items() if key != "trim_offsets"}


def end_tokens(file: GgufFile) -> list[int]:
    """At which tokens an answer ends: the one that the file names, and those whose names say it.

    Errors: :class:`BadModelFile` where there is none.
    """
    tokens = [str(token) for token in arrays(file).get("tokenizer.ggml.tokens", [])]
    named = file.header.metadata.get("tokenizer.ggml.eos_token_id")
    found = [named, *(tokens.index(text) for text in _ENDS if text in tokens)]
    ends = list(dict.fromkeys(at for at in found if isinstance(at, int) and 0 <= at < len(tokens)))
    if not ends:
        raise BadModelFile(f"{file.path} names no token that ends an answer ('tokenizer.ggml.eos_token_id').")
    return ends


def _added(at: int, text: str, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": at, "content": text, **plain, "special": special}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
