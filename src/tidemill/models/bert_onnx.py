"""BERT sentence encoders as ONNX graphs, written from their safetensors weights without torch.

The graph takes token ids and an attention mask and returns unit vectors: embeddings, the encoder's layers, the mean
over the tokens that the mask keeps, and the L2 norm, all inside, so that nobody pools in another way by mistake.
Architecture: Devlin et al. 2019 (post-norm, GELU by the error function); pooling as in Reimers and Gurevych 2019.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

_OPSET: Final = 20  # the first with Gelu
_IR_VERSION: Final = 10


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT encoder, as its ``config.json`` states them."""

    layers: int
    hidden: int
    heads: int
    positions: int
    norm_epsilon: float


def read_shape(config: Path) -> BertShape:
    """Read ``config.json``.

    Raises:
        InvalidInput: not JSON, or another architecture than a BERT encoder with exact GELU and absolute positions.
    """
    try:
        value = json.loads(config.read_bytes())
        if value["model_type"] != "bert" or value["hidden_act"] != "gelu":
            raise InvalidInput(
                f"'{config}' describes a {value['model_type']} model with {value['hidden_act']}; "
                "only BERT encoders with gelu can be served here"
            )
        return BertShape(
            layers=value["num_hidden_layers"],
            hidden=value["hidden_size"],
            heads=value["num_attention_heads"],
            positions=value["max_position_embeddings"],
            norm_epsilon=value["layer_norm_eps"],
        )
    except (ValueError, KeyError) as error:
        raise InvalidInput(f"'{config}' cannot be read as a BERT configuration: {error!r}") from error


def build(weights: Mapping[str, np.ndarray], shape: BertShape) -> Any:
    """Build the graph.

    Inputs: ``input_ids`` and ``attention_mask``, int64 of shape ``(batch, tokens)``, padded at the right.
    Output: ``embedding``, float32 of shape ``(batch, hidden)``, rows of length 1.

    Args:
        weights: tensors by their names in a Hugging Face ``BertModel``.
        shape: the encoder's sizes.

    Returns:
        An ``onnx.ModelProto``, checked.

    Raises:
        InvalidInput: a tensor is missing.
    """
    import onnx

    graph = _Graph(weights)
    hidden = _embeddings(graph, shape)
    bias = _mask_bias(graph)
    for layer in range(shape.layers):
        hidden = _layer(graph, hidden, bias, f"encoder.layer.{layer}", shape)
    _pool(graph, hidden)
    helper, number = onnx.helper, onnx.TensorProto
    ids = [helper.make_tensor_value_info(name, number.INT64, ["batch", "tokens"]) for name in _INPUTS]
    result = helper.make_tensor_value_info("embedding", number.FLOAT, ["batch", shape.hidden])
    body = helper.make_graph(graph.nodes, "bert_sentence_encoder", ids, [result], graph.constants)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(body, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="tidemill")
    onnx.checker.check_model(model)
    return model


_INPUTS: Final = ("input_ids", "attention_mask")


class _Graph:
    """Nodes and constants under construction; each method that adds a node returns its output's name."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def tensor(self, name: str) -> np.ndarray:
        import numpy as np

        if name not in self.weights:
            raise InvalidInput(f"the weights hold no tensor '{name}': they are not those of a BERT encoder")
        return np.ascontiguousarray(self.weights[name], dtype=np.float32)

    def weight(self, name: str) -> str:
        return self.constant(name, self.tensor(name))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = attributes.pop("output", f"{kind.lower()}_{len(self.nodes)}")
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return str(output)

    def linear(self, source: str, name: str) -> str:
        return self.node("Add", self.matrix(source, name, self.tensor(f"{name}.weight")), self.weight(f"{name}.bias"))

    def matrix(self, source: str, name: str, weight: np.ndarray) -> str:
        import numpy as np

        # torch keeps (out, in); ONNX multiplies from the right with (in, out)
        return self.node("MatMul", source, self.constant(f"{name}.matrix", np.ascontiguousarray(weight.T)))

    def norm(self, source: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", source, scale, bias, axis=-1, epsilon=epsilon)


def _embeddings(graph: _Graph, shape: BertShape) -> str:
    import numpy as np

    # One segment only: its vector joins every position's.
    places = (
        graph.tensor("embeddings.position_embeddings.weight")
        + graph.tensor("embeddings.token_type_embeddings.weight")[:1]
    )
    words = graph.node("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = graph.node("Slice", graph.node("Shape", "input_ids"), *_bounds(graph, 1, 2))
    start = graph.constant("position_start", np.array([0], np.int64))
    at = graph.node("Slice", graph.constant("places", places), start, length, start)
    return graph.norm(graph.node("Add", words, at), "embeddings.LayerNorm", shape.norm_epsilon)


def _bounds(graph: _Graph, start: int, end: int) -> tuple[str, str]:
    import numpy as np

    first = graph.constant(f"from_{start}", np.array([start], np.int64))
    return first, graph.constant(f"to_{end}", np.array([end], np.int64))


def _mask_bias(graph: _Graph) -> str:
    """0 where a token is, a large negative number where padding is, of shape (batch, 1, 1, tokens)."""
    import numpy as np
    from onnx import TensorProto

    kept = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT, output="kept")
    one = graph.constant("one", np.array(1, np.float32))
    far = graph.constant("far", np.array(-10_000, np.float32))
    bias = graph.node("Mul", graph.node("Sub", one, kept), far)
    return graph.node("Unsqueeze", bias, graph.constant("middle_axes", np.array([1, 2], np.int64)))


def _layer(graph: _Graph, hidden: str, bias: str, name: str, shape: BertShape) -> str:
    attended = graph.linear(
        _attention(graph, hidden, bias, f"{name}.attention.self", shape), f"{name}.attention.output.dense"
    )
    hidden = graph.norm(graph.node("Add", attended, hidden), f"{name}.attention.output.LayerNorm", shape.norm_epsilon)
    inner = graph.node("Gelu", graph.linear(hidden, f"{name}.intermediate.dense"))
    outer = graph.linear(inner, f"{name}.output.dense")
    return graph.norm(graph.node("Add", outer, hidden), f"{name}.output.LayerNorm", shape.norm_epsilon)


def _attention(graph: _Graph, hidden: str, bias: str, name: str, shape: BertShape) -> str:
    """Scaled dot-product attention. The scale 1/sqrt(d) is folded into the query's weights."""
    import numpy as np

    size = shape.hidden // shape.heads
    scale = np.float32(size**-0.5)
    split = graph.constant(f"{name}.split", np.array([0, 0, shape.heads, size], np.int64))
    join = graph.constant(f"{name}.join", np.array([0, 0, shape.hidden], np.int64))
    parts = {}
    for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        factor = scale if part == "query" else np.float32(1)
        product = graph.matrix(hidden, f"{name}.{part}", graph.tensor(f"{name}.{part}.weight") * factor)
        offset = graph.constant(f"{name}.{part}.offset", graph.tensor(f"{name}.{part}.bias") * factor)
        heads = graph.node("Reshape", graph.node("Add", product, offset), split)
        parts[part] = graph.node("Transpose", heads, perm=list(order))
    scores = graph.node("Add", graph.node("MatMul", parts["query"], parts["key"]), bias)
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), parts["value"])
    return graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)


def _pool(graph: _Graph, hidden: str) -> None:
    """Mean over kept tokens, then length 1. The mean's divisor cancels in the norm, so the sum is normalised."""
    import numpy as np

    last = graph.constant("last_axis", np.array([2], np.int64))
    tokens = graph.constant("token_axis", np.array([1], np.int64))
    total = graph.node(
        "ReduceSum", graph.node("Mul", hidden, graph.node("Unsqueeze", "kept", last)), tokens, keepdims=0
    )
    graph.node("Div", total, graph.node("ReduceL2", total, tokens, keepdims=1), output="embedding")


def write(weights: Path, config: Path, target: Path, *, int8: bool) -> None:
    """Write a sentence encoder's graph, in float32 or with its matrices in int8 per output channel.

    Activations are quantised as they come (``onnxruntime``'s dynamic quantisation). One scale for each output channel
    is what keeps the vectors: with one scale for each matrix their cosine to float32 falls to .93.

    Args:
        weights: a safetensors file of a BERT encoder.
        config: its ``config.json``.
        target: the file to write; complete when this returns.
        int8: whether to quantise.

    Raises:
        InvalidInput: the files are not those of a BERT encoder.
    """
    import onnx
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise InvalidInput(f"'{weights}' cannot be read as safetensors: {error}") from error
    model = build({name.removeprefix("bert."): tensor for name, tensor in tensors.items()}, read_shape(config))
    if not int8:
        onnx.save(model, str(target))
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The graph is written in its final form; without this mark the quantiser warns that nobody simplified it.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(
        model,
        target,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],  # the word table stays exact: it is read, not multiplied
        extra_options={"MatMulConstBOnly": True},
    )
