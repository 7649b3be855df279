"""Sentence embeddings by ONNX Runtime, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    import numpy as np

_TOKENS_AT_ONCE: Final = 4096  # padded; larger batches leave the caches and gain nothing


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors and what they cost: ``vectors`` float32 ``(n, dimensions)``, rows of length 1; ``tokens`` read."""

    vectors: np.ndarray
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that are embedded at once: their token ids, and their places among the texts that were given."""

    places: list[int]
    rows: list[list[int]]

    @property
    def tokens(self) -> int:
        """Tokens in all rows, without padding."""
        return sum(map(len, self.rows))


class LocalEmbedder:
    """Turns texts into unit vectors in this process. Safe to call from several threads.

    Args:
        onnx: a graph with inputs ``input_ids`` and ``attention_mask`` and one output ``(batch, dimensions)``.
        tokenizer: the ``tokenizer.json`` that goes with it.
        max_tokens: longer texts are cut here, special tokens included.
        threads: cores it may use.

    Raises:
        InvalidInput: a file is missing or not what it should be.
    """

    def __init__(self, onnx: Path, tokenizer: Path, *, max_tokens: int = 256, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        for path in (onnx, tokenizer):
            if not path.is_file():
                raise InvalidInput(f"there is no file '{path}'; pull the embedding model first")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads starve whatever shares the cores with them: the chat model does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        self.dimensions = int(self._session.get_outputs()[0].shape[1])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 ``(len(texts), dimensions)`` in their order."""
        return self.embed(texts).vectors

    def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed texts and count the tokens read (special tokens included, padding not).

        Texts of like length share a batch, so that little padding is computed; a text's vector depends on the batch
        only by the rounding of quantised activations.
        """
        import numpy as np

        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        tokens = 0
        for batch in self.batches(texts):
            vectors[batch.places] = self.run(batch)
            tokens += batch.tokens
        return Embedding(vectors, tokens)

    def batches(self, texts: Sequence[str]) -> list[Batch]:
        """Tokenise texts and part them into batches, for callers that let other work in between."""
        # encode_batch would use every core that the tokenizers library sees; one text takes microseconds.
        ids = [self._tokenizer.encode(text).ids for text in texts]
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]), reverse=True)
        batches = []
        while order:
            count = max(1, _TOKENS_AT_ONCE // len(ids[order[0]]))
            places, order = order[:count], order[count:]
            batches.append(Batch(places, [ids[at] for at in places]))
        return batches

    def run(self, batch: Batch) -> np.ndarray:
        """Embed one batch: float32 ``(len(batch.places), dimensions)``."""
        import numpy as np

        rows = batch.rows
        shape = (len(rows), max(map(len, rows)))
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = row
            mask[at, : len(row)] = 1
        return np.asarray(self._session.run(None, {"input_ids": tokens, "attention_mask": mask})[0])
