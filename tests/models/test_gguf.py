import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidemill.kernel import InvalidInput
from tidemill.models import Quantization
from tidemill.models.gguf import TensorType, decode_blocks, encode_blocks, read_header, requantize


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _file(path: Path, blocks: np.ndarray, norms: np.ndarray) -> Path:
    """A GGUF file by hand: metadata of three types, one Q4_1 matrix and one F32 vector."""
    pairs = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _text("general.file_type") + struct.pack("<II", 4, 3),
        _text("words") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("b"),
    ]
    tensors = [
        _text("m") + struct.pack("<IQQIQ", 2, 32, len(blocks), TensorType.Q4_1, 0),
        _text("n") + struct.pack("<IQIQ", 1, len(norms), TensorType.F32, -(-blocks.nbytes // 32) * 32),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    head += b"\0" * (-len(head) % 32)
    body = blocks.tobytes() + b"\0" * (-blocks.nbytes % 32) + norms.astype("<f4").tobytes()
    path.write_bytes(head + body)
    return path


def _q4_1(rng: np.random.Generator, count: int) -> np.ndarray:
    scales = rng.uniform(-0.1, 0.1, (count, 2)).astype("<f2").view(np.uint8)
    return np.concatenate([scales, rng.integers(0, 256, (count, 16), dtype=np.uint8)], axis=1)


@pytest.mark.parametrize(("form", "kind"), [(Quantization.Q4_0, TensorType.Q4_0), (Quantization.Q8_0, TensorType.Q8_0)])
def test_only_the_matrices_change(tmp_path: Path, form: Quantization, kind: TensorType) -> None:
    rng = np.random.default_rng(1)
    blocks, norms = _q4_1(rng, 7), rng.normal(size=5).astype(np.float32)
    source = _file(tmp_path / "s.gguf", blocks, norms)
    target = tmp_path / "t.gguf"
    shares: list[float] = []
    requantize(source, target, form, shares.append)
    header = read_header(target)
    assert header.metadata["words"] == ["a", "b"]
    assert header.metadata["general.file_type"] == {"q4_0": 2, "q8_0": 7}[form]
    assert [(t.name, t.shape, t.type) for t in header.tensors] == [
        ("m", (32, 7), kind),
        ("n", (5,), TensorType.F32),
    ]
    data = target.read_bytes()[header.data_offset :]
    matrix, vector = header.tensors
    assert data[vector.offset : vector.offset + 20] == norms.tobytes()
    written = np.frombuffer(data[: matrix.bytes], np.uint8).reshape(7, -1)
    old = decode_blocks(blocks, TensorType.Q4_1)
    step = np.abs(old).max(axis=1, keepdims=True) / (8 if form == "q4_0" else 127)
    # half a step of rounding (a whole one where Q4_0 is cut at 7), and the scale's own 11 bits
    slack = (1.0 if form == "q4_0" else 0.5) * step + np.abs(old) * 2**-10 + 1e-6
    assert (np.abs(decode_blocks(written, kind) - old) <= slack).all()
    assert shares[-1] == 1.0
    again = tmp_path / "u.gguf"
    requantize(source, again, form)
    assert again.read_bytes() == target.read_bytes()


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 32), elements=st.floats(-100, 100, width=32)))
def test_the_extreme_weight_of_a_block_is_kept(weights: np.ndarray) -> None:
    top = np.abs(weights).argmax(axis=1)
    rows = np.arange(len(weights))
    for kind in (TensorType.Q4_0, TensorType.Q8_0):
        decoded = decode_blocks(encode_blocks(weights, kind), kind)
        # float16 scales: relative 2^-11, and nothing below their smallest step
        np.testing.assert_allclose(decoded[rows, top], weights[rows, top], rtol=2**-10, atol=127 * 2**-24)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"PK..", "is not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 2, 0, 0), "version 2"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 9), "ends in the middle"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + _text("t") + struct.pack("<IQIQ", 1, 8, 14, 0), "ggml type 14"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes, part: str) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=part):
        read_header(path)


def test_other_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="q4_0 or q8_0"):
        requantize(tmp_path / "a", tmp_path / "b", Quantization.INT8)
