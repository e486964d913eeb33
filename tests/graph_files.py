"""Small graphs for the engines of graphs: y = x + x, float32."""

from __future__ import annotations

import base64
import zlib
from typing import Any

# torch.export of ``lambda x: x + x`` for x of shape (2, 2), by executorch 1.4.1: to_edge_transform_and_lower(…)
# .to_executorch().buffer, compressed.
_PTE = (
    "c-pN}!A`<J5S`Xi7vxZp5Dpxg4F?az1mi(D>&>G#LKJC@O`1Yr8#RWTAK<6(As#&V0e*;~zFihvDw>$s=5;!=eQ(~*wn0Q^7wtm?@~Dny6|qc=97L"
    "HB?E^;!D9bVj!J_p`<_vJuy<Tsqw;HsX<RhyaeQH=~0>>IxzzgsSya6)^eAq;`q3LhvEqgxAvrKv@16#l_6;wp*i!kYQ`az(-^%SeL@=(&8a}7)94"
    "9^{`vlWLdrgzD7&w}B@)?6#+&8$gZPkOGB|BQK-71>1(huj>0hIM%|RH#sec9k=xRvhGuGpa9V?7C_{OAT8au;~j7yDe(}OWi8%ebe<!T`0f9hxe="
    "QVwOz*2dBUZ&~3N;M=l;lA@BG}8pkc44~B^d?}bsgjpAS&CYO^@I6%4EoA$t+=lT3PjbafclLL{C;*hUtaVf?(sr?)OFaD<+eFxD%<l1(7{3i(vVH"
    "-2J8IJGz<A6Q^ShA04"
)


def pte() -> bytes:
    return zlib.decompress(base64.b85decode(_PTE))


def tflite(custom: str = "", free: bool = False) -> bytes:
    """x of shape (1, 2). ``custom``: an operator of that name in place of the sum. ``free``: any first dimension.
    Needs ai-edge-litert, which has the format's schema.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kinds: Any = schema.BuiltinOperator
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kinds.CUSTOM if custom else kinds.ADD
    code.customCode, code.version = custom.encode() or None, 1
    graph, operator, model = schema.SubGraphT(), schema.OperatorT(), schema.ModelT()
    graph.tensors = []
    for name in (b"x", b"y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 2], schema.TensorType.FLOAT32, 0
        tensor.shapeSignature = [-1, 2] if free else None
        graph.tensors.append(tensor)
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 0], [1]
    if not custom:
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [code], [schema.BufferT()], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
