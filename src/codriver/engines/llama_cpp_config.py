"""What the llama.cpp engine can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue


@dataclass(frozen=True)
class LlamaCppConfig:
    """One model in this process."""

    id: str = setting("vehicle", "The engine's name.")
    model: Path = setting(Path("model.gguf"), "The GGUF file.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    context_tokens: int = setting(2048, "Context of one conversation, in tokens.", least=64)
    slots: int = setting(4, "Conversations that are answered at once.", least=1, most=64)
    threads: int = setting(0, "Threads that compute; 0 leaves one core to others.", least=0)
    batch_tokens: int = setting(
        128,
        "Prompt tokens per step. Between steps others' answers go on, and a prompt being read can be cancelled.",
        least=32,
        most=4096,
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] = setting("f16", "Number format of the KV cache.")
    prefix: tuple[dict[str, Any], ...] = setting((), "Messages that every conversation begins with; kept computed.")
    prefix_tools: tuple[dict[str, Any], ...] = setting((), "Tools of every conversation, as in a request.")
    prefix_dir: Path | None = setting(None, "Folder that keeps the computed prefix across restarts; none: not kept.")
    prefix_files: int = setting(4, "Most computed prefixes kept in that folder.", least=1)
    openings: int = setting(
        8, "Most beginnings kept computed that several requests share (in memory, while it runs); 0: none.", least=0
    )
    mmproj: Path | None = setting(None, "The GGUF file of the model's image projector; without one no image is read.")
    lora: tuple[str, ...] = setting((), "LoRA adapters that requests may name: 'name=file.gguf' each.")
    input_usd: float = setting(0.0, "US dollars per million input tokens, for the budget.", least=0)
    output_usd: float = setting(0.0, "US dollars per million output tokens, for the budget.", least=0)

    def adapters(self) -> list[tuple[str, Path]]:
        """Name and file of each adapter. Errors: :class:`BadConfigValue`."""
        pairs = []
        for item in self.lora:
            name, equals, path = item.partition("=")
            if not (name and equals and path):
                raise BadConfigValue(f"The adapter '{item}' is not of the form name=file.gguf.", param="lora")
            pairs.append((name, Path(path).expanduser()))
        return pairs
