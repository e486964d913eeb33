"""A folder of safetensors, as Hugging Face keeps llama and qwen2 models, as the GGUF file that the passes work on.

Needed: ``config.json``, ``model.safetensors`` (or its pieces with their index) and ``tokenizer.json``. The rule kept
here: a setting, a tensor or a way of splitting text that is not known is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codriver.core.errors import BadConfigValue, BadModelFile

from ..ggml import Floats
from .gguf_writer import Planned, Value, write_gguf
from .hf_folder import MATRIX_NAMES, NORM_NAMES
from .json_file import read_json
from .safetensors_file import Entry, read_entries
from .tokenizer_files import read_tokenizer

Told = Callable[[str], None]
_INDEX = "model.safetensors.index.json"
_KNOWN = ("llama", "qwen2")


def write_f16(source: Path, target: Path, told: Told) -> None:
    """Matrices as F16, the rest as F32. Errors: :class:`MissingFile`; :class:`BadModelFile` naming file and tensor."""
    _write(source, target, told, "F16")


def write_f32(source: Path, target: Path, told: Told) -> None:
    """All as F32. Errors: as :func:`write_f16`."""
    _write(source, target, told, "F32")


def _write(source: Path, target: Path, told: Told, kind: str) -> None:
    if target.exists():
        raise BadConfigValue(f"{target} is there already; nothing is written over it.", param="out")
    config = _Config(source)
    told("reads what the folder holds")
    entries = _entries(source)
    tensors = [_planned(config, entries, wanted, kind) for wanted in _wanted(config, entries)]
    strange = sorted(set(entries) - {name for _, name, _ in _wanted(config, entries)} - {"lm_head.weight"})
    strange = [name for name in strange if not name.endswith("rotary_emb.inv_freq")]
    if strange:
        raise BadModelFile(f"{source} has a tensor '{strange[0]}', which is not known.")
    metadata = config.metadata(kind) | read_tokenizer(source, config.vocabulary)
    told("writes the weights")
    write_gguf(target, metadata, tensors)


class _Config:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.json"
        self._told = read_json(self.file)
        self.architecture = str(self._told.get("model_type"))
        if self.architecture not in _KNOWN:
            raise BadModelFile(f"{self.file} has the 'model_type' {self.architecture!r}; {', '.join(_KNOWN)} are read.")
        self._refuse()
        self.width, self.layers = self.count("hidden_size"), self.count("num_hidden_layers")
        self.inner, self.heads = self.count("intermediate_size"), self.count("num_attention_heads")
        self.kv_heads = self.count("num_key_value_heads", self.heads)
        self.head = self.count("head_dim", self.width // self.heads)
        self.vocabulary = self.count("vocab_size")
        self.tied = bool(self._told.get("tie_word_embeddings", False))

    def _refuse(self) -> None:
        """What changes the answer and would not be carried over."""
        usual: dict[str, tuple[Any, ...]] = {
            "hidden_act": ("silu",),
            "rope_scaling": (None,),
            "quantization_config": (None,),
            "use_sliding_window": (False, None),
        }
        for key, allowed in usual.items():
            if key in self._told and self._told[key] not in allowed:
                raise BadModelFile(f"{self.file} has '{key}' = {str(self._told[key])[:80]}, which is not carried over.")

    def count(self, key: str, default: int | None = None) -> int:
        found = self._told.get(key, default)
        if found is None and default is not None:
            found = default
        if type(found) is not int or not 0 < found < 1 << 24:
            raise BadModelFile(f"The setting '{key}' of {self.file} is {found!r}, and must be a count.")
        return found

    def _real(self, key: str, default: float) -> float:
        rope = self._told.get("rope_parameters")
        within = rope if isinstance(rope, dict) and key in rope else self._told
        found = within.get(key, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not found > 0:
            raise BadModelFile(f"The setting '{key}' of {self.file} is {found!r}, and must be above zero.")
        return float(found)

    def metadata(self, kind: str) -> dict[str, Value]:
        a = self.architecture
        found: dict[str, Value] = {
            "general.architecture": a,
            "general.name": self.file.absolute().parent.name,
            "general.file_type": 1 if kind == "F16" else 0,
            f"{a}.block_count": self.layers,
            f"{a}.context_length": self.count("max_position_embeddings"),
            f"{a}.embedding_length": self.width,
            f"{a}.feed_forward_length": self.inner,
            f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.kv_heads,
            f"{a}.attention.key_length": self.head,
            f"{a}.attention.value_length": self.head,
            f"{a}.rope.dimension_count": self.head,
            f"{a}.rope.freq_base": self._real("rope_theta", 10000.0),
            f"{a}.attention.layer_norm_rms_epsilon": self._real("rms_norm_eps", 1e-6),
            f"{a}.vocab_size": self.vocabulary,
        }
        return found


def _entries(folder: Path) -> dict[str, Entry]:
    index = folder / _INDEX
    if not index.is_file():
        return read_entries(folder / "model.safetensors")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise BadModelFile(f"{index} has no 'weight_map' of names.")
    found: dict[str, Entry] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise BadModelFile(f"{index} names a file outside of its folder: {name[:80]!r}.")
        found |= read_entries(folder / name)
    return found


def _wanted(config: _Config, entries: dict[str, Entry]) -> list[tuple[str, str, tuple[int, ...]]]:
    """GGUF's name, Hugging Face's, and the shape that it must have."""
    q, kv, width = config.heads * config.head, config.kv_heads * config.head, config.width
    shapes = {
        "attn_q": (q, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, q),
        "ffn_gate": (config.inner, width), "ffn_up": (config.inner, width), "ffn_down": (width, config.inner),
    }  # fmt: skip
    found: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd.weight", "model.embed_tokens.weight", (config.vocabulary, width)),
        ("output_norm.weight", "model.norm.weight", (width,)),
    ]
    if not config.tied:
        found.append(("output.weight", "lm_head.weight", (config.vocabulary, width)))
    for layer in range(config.layers):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        found += [(f"{here}.{part}.weight", f"{there}.{name}.weight", (width,)) for part, name in NORM_NAMES.items()]
        for part, name in MATRIX_NAMES.items():
            found.append((f"{here}.{part}.weight", f"{there}.{name}.weight", shapes[part]))
            if f"{there}.{name}.bias" in entries:
                found.append((f"{here}.{part}.bias", f"{there}.{name}.bias", shapes[part][:1]))
    return found


def _planned(
    config: _Config, entries: dict[str, Entry], wanted: tuple[str, str, tuple[int, ...]], kind: str
) -> Planned:
    own, name, shape = wanted
    entry = entries.get(name)
    if entry is None:
        raise BadModelFile(f"{config.file.parent} has no tensor '{name}'.")
    if entry.shape != shape:
        raise BadModelFile(f"The tensor '{name}' of {entry.file} has the shape {entry.shape}, not {shape}.")
    part = own.split(".")[-2]
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(part, 0) if config.architecture == "llama" else 0

    def make() -> Floats:
        weights = entry.weights()
        if not np.isfinite(weights).all():
            raise BadModelFile(f"The tensor '{name}' of {entry.file} holds numbers that are not finite.")
        # llama's rotary pairs are halves apart here, and neighbours in GGUF.
        return weights.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape) if heads else weights

    return Planned(own, kind if len(shape) == 2 else "F32", shape, make)
