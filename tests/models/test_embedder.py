"""The ONNX graph against an independent forward pass in numpy, on made-up and on real weights."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tidemill.kernel import InvalidInput
from tidemill.models import MINILM, LocalEmbedder, prepare
from tidemill.models.bert_onnx import BertShape, build, read_shape, write

TEXTS = [
    "What does the assert statement do?",
    "The assert statement is a convenient way to insert debugging assertions into a program.",
    "Bananas are yellow.",
    "",
]


def _norm(x: np.ndarray, weights: Mapping[str, np.ndarray], name: str, epsilon: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + epsilon)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _linear(x: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


_erf = np.vectorize(math.erf)


def forward(weights: Mapping[str, np.ndarray], shape: BertShape, ids: list[int]) -> np.ndarray:
    """One text through a BERT encoder in float64, without padding, head by head; mean and length 1."""
    weights = {name: tensor.astype(np.float64) for name, tensor in weights.items() if tensor.dtype.kind == "f"}
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = _norm(x, weights, "embeddings.LayerNorm", shape.norm_epsilon)
    size = shape.hidden // shape.heads
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        query, key, value = (_linear(x, weights, f"{name}.attention.self.{p}") for p in ("query", "key", "value"))
        heads = []
        for head in range(shape.heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(share / share.sum(-1, keepdims=True) @ value[:, part])
        attended = _linear(np.concatenate(heads, axis=1), weights, f"{name}.attention.output.dense")
        x = _norm(x + attended, weights, f"{name}.attention.output.LayerNorm", shape.norm_epsilon)
        inner = _linear(x, weights, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        outer = _linear(inner, weights, f"{name}.output.dense")
        x = _norm(x + outer, weights, f"{name}.output.LayerNorm", shape.norm_epsilon)
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


SHAPE = BertShape(layers=2, hidden=24, heads=3, positions=16, norm_epsilon=1e-12)


def tiny_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    hidden, inner = SHAPE.hidden, 40
    weights = {
        "embeddings.word_embeddings.weight": matrix(50, hidden),
        "embeddings.position_embeddings.weight": matrix(SHAPE.positions, hidden),
        "embeddings.token_type_embeddings.weight": matrix(2, hidden),
    }
    dense = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    dense |= {"attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden)}
    dense |= {"output.dense": (hidden, inner)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(SHAPE.layers):
        for name, (out, into) in dense.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = matrix(out, into)
            weights[f"encoder.layer.{layer}.{name}.bias"] = matrix(out)
        norms += [f"encoder.layer.{layer}.{name}" for name in ("attention.output.LayerNorm", "output.LayerNorm")]
    for name in norms:
        weights[f"{name}.weight"] = 1 + matrix(hidden)
        weights[f"{name}.bias"] = matrix(hidden)
    return weights


def test_the_graph_is_the_model_and_padding_changes_nothing() -> None:
    import onnxruntime

    weights = tiny_weights()
    session = onnxruntime.InferenceSession(
        build(weights, SHAPE).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = [[2, 3, 4, 5, 6, 7, 8], [9, 10], [11]]
    ids, mask = np.zeros((3, 7), np.int64), np.zeros((3, 7), np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    got = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(got, [forward(weights, SHAPE, row) for row in rows], atol=2e-5)


def test_weights_that_are_not_a_bert(tmp_path: Path) -> None:
    weights = tiny_weights()
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(InvalidInput, match=r"no tensor 'encoder\.layer\.1\.output\.dense\.bias'"):
        build(weights, SHAPE)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "roberta", "hidden_act": "gelu"}')
    with pytest.raises(InvalidInput, match="only BERT"):
        read_shape(config)
    config.write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_shape(config)
    (tmp_path / "w").write_bytes(b"junk")
    with pytest.raises(InvalidInput, match="safetensors"):
        write(tmp_path / "w", config, tmp_path / "o", int8=False)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no file"):
        LocalEmbedder(tmp_path / "a.onnx", tmp_path / "tokenizer.json")


def test_real_weights(pulled: Any, tmp_path: Path) -> None:
    """float32 graph = numpy on MiniLM's own weights; int8 within cosine .99 of float32; similar texts are near."""
    fp32 = prepare(MINILM.quantized("fp32"), tmp_path, cache_dir=pulled.cache_dir)
    exact = LocalEmbedder(fp32.files["weights"], fp32.files["tokenizer"])
    served = LocalEmbedder(pulled.embedding["weights"], pulled.embedding["tokenizer"])
    vectors, quick = exact(TEXTS), served.embed(TEXTS)
    weights = load_file(tmp_path / "source" / "weights")
    shape = read_shape(tmp_path / "source" / "config")
    assert json.loads((tmp_path / "source" / "config").read_text())["hidden_size"] == exact.dimensions == 384
    rows = [row for batch in exact.batches(TEXTS[:1]) for row in batch.rows]
    np.testing.assert_allclose(vectors[0], forward(weights, shape, rows[0]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(quick.vectors, axis=1), 1, atol=1e-5)
    assert (vectors * quick.vectors).sum(1)[:3].min() > 0.99
    assert (vectors * quick.vectors).sum(1)[3] > 0.95  # the empty text: two tokens, and nobody's passage
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    assert quick.tokens == sum(batch.tokens for batch in served.batches(TEXTS)) > 30
    assert served([]).shape == (0, 384)
    long = served.embed(["word " * 2000])
    assert long.tokens == 256


def test_batches_hold_texts_of_like_length_and_every_text_once(pulled: Any) -> None:
    served = LocalEmbedder(pulled.embedding["weights"], pulled.embedding["tokenizer"])
    texts = ["word " * (at % 300) for at in range(200)]
    batches = served.batches(texts)
    assert sorted(place for batch in batches for place in batch.places) == list(range(200))
    assert all(len(batch.rows) * max(map(len, batch.rows)) <= 4096 for batch in batches)


def test_prefixed_tensor_names_are_understood(tmp_path: Path) -> None:
    save_file({f"bert.{name}": tensor for name, tensor in tiny_weights().items()}, tmp_path / "w")
    config = {"model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 2, "hidden_size": 24}
    config |= {"num_attention_heads": 3, "max_position_embeddings": 16, "layer_norm_eps": 1e-12}
    (tmp_path / "c").write_text(json.dumps(config))
    write(tmp_path / "w", tmp_path / "c", tmp_path / "o.onnx", int8=True)
    write(tmp_path / "w", tmp_path / "c", tmp_path / "p.onnx", int8=True)
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()
