"""The engines that Codriver ships, by name. Third parties add theirs by the entry-point group ``codriver.engines``."""

from __future__ import annotations

from codriver.core.registry import Registry

ENGINES = Registry(
    "engine",
    "codriver.engines",
    {
        "executorch": "codriver.engines.executorch:ExecuTorch",
        "litert": "codriver.engines.litert:LiteRt",
        "llama_cpp": "codriver.engines.llama_cpp:LlamaCpp",
        "null": "codriver.engines.null:Null",
        "onnx_genai": "codriver.engines.onnx_genai:OnnxGenai",
        "onnx_runtime": "codriver.engines.onnx_runtime:OnnxRuntime",
        "openai": "codriver.engines.openai:OpenAIServer",
        "openvino": "codriver.engines.openvino:OpenVino",
        "replay": "codriver.engines.replay:Replay",
    },
    needs={
        # ExecuTorch's Python binding takes and gives tensors of torch.
        "executorch": (("executorch", "torch"), "executorch"),
        "litert": (("ai_edge_litert", "numpy"), "litert"),
        # xllamacpp comes with the package itself, except where no wheel exists for the platform.
        "llama_cpp": (("xllamacpp",), "all"),
        "onnx_genai": (("onnxruntime_genai", "tokenizers", "numpy"), "onnx"),
        "onnx_runtime": (("onnxruntime", "onnx", "tokenizers", "numpy"), "onnx"),
        "openai": (("httptools", "aiohappyeyeballs"), "all"),
        "openvino": (("openvino_genai",), "openvino"),
    },
)
