"""Speed and fidelity of the local runtime: embeddings in this process, chat over the HTTP port that clients use.

    python benchmarks/bench_models.py [--form q4_0|q8_0] [--threads N] [--cache DIR]

CPU seconds are the figures to trust on a machine that does other work; seconds are what a user waits.
"""

from __future__ import annotations

import argparse
import asyncio
import pydoc_data.topics
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from rows import Row, write_rows
from tidemill.models import MINILM, SMOLLM2, LocalEmbedder, ModelClient, prepare

PASSAGES = 64
WORDS = 155  # of the language reference: about 250 tokens for MiniLM
RULES = (
    "You answer questions about the Python language. Use only the passages that are given. Answer in one short "
    "sentence. Cite the number of the passage that you used in square brackets. If the passages do not hold the "
    "answer, say that you do not know. Never invent names. Write plain English, no lists, and stop when done."
)


def _topics() -> list[tuple[str, str]]:
    return [(name, " ".join(text.split())) for name, text in sorted(pydoc_data.topics.topics.items())]


def _embedding_rows(cache: Path, scratch: Path) -> list[Row]:
    files = {}
    for form in ("fp32", "int8"):
        files[form] = prepare(MINILM.quantized(form), scratch / form, cache_dir=cache).files
    words = " ".join(text for _, text in _topics()).split()
    passages = [" ".join(words[at * WORDS : (at + 1) * WORDS]) for at in range(PASSAGES)]
    vectors, speed = {}, {}
    for form, paths in files.items():
        embedder = LocalEmbedder(paths["weights"], paths["tokenizer"], threads=1)
        embedder(passages[:4])
        begun = time.process_time()
        embedding = embedder.embed(passages)
        speed[form] = PASSAGES / (time.process_time() - begun)
        vectors[form] = embedding.vectors
    cosines = (vectors["fp32"] * vectors["int8"]).sum(axis=1)
    tokens = embedding.tokens / PASSAGES
    return [
        Row(
            f"embeddings, passages of {tokens:.0f} tokens, one thread",
            speed["int8"],
            "/CPU-s",
            ">= 15",
            speed["int8"] >= 15,
            {"fp32": speed["fp32"]},
        ),
        Row("cosine of int8 to fp32, mean", float(cosines.mean()), "", ">= .99", bool(cosines.mean() >= 0.99)),
        Row("cosine of int8 to fp32, least", float(cosines.min()), "", ">= .99", bool(cosines.min() >= 0.99)),
    ]


def _rag_request(number: int) -> dict[str, Any]:
    """About 80 tokens of rules that all share, 110 of passage and question that no other has; at most 24 answered."""
    topics = _topics()
    name, text = topics[number % len(topics)]
    start = 400 * (number // len(topics))
    question = f"[1] {text[start : start + 380]}\n\nQuestion: what does {name} mean?"
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
    return {"model": SMOLLM2.name, "messages": messages, "max_tokens": 24, "temperature": 0}


def _story(number: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me story number {number}, a long one."}]
    return {
        "model": SMOLLM2.name,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


class _Bench:
    def __init__(self, client: ModelClient, process: psutil.Process) -> None:
        self.client = client
        self.process = process
        self.next = 0

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    async def stories(self, together: int, tokens: int = 64) -> float:
        """Tokens a second of all answers together."""
        begun = time.perf_counter()
        await asyncio.gather(*(self.client.chat(_story(at, tokens)) for at in range(together)))
        return together * tokens / (time.perf_counter() - begun)

    async def prefill(self) -> tuple[float, float]:
        """Prompt tokens a second of a new prompt, and of one whose first four fifths were asked before."""
        words = " ".join(text for _, text in _topics()[40:60]).split()
        shared, ends = words[:320], (words[320:400], words[400:480])
        speeds = []
        for end in ends:
            messages = [{"role": "user", "content": " ".join(shared + end)}]
            request = {"model": SMOLLM2.name, "messages": messages, "max_tokens": 1}
            begun = time.perf_counter()
            answer = await self.client.chat(request)
            speeds.append(answer["usage"]["prompt_tokens"] / (time.perf_counter() - begun))
        return speeds[0], speeds[1]

    async def rag(self, together: int, count: int) -> dict[str, float]:
        """Seconds, CPU seconds and tokens for each of ``count`` requests, ``together`` at a time."""
        waiting = asyncio.Queue[int]()
        for number in range(self.next, self.next + count):
            waiting.put_nowait(number)
        self.next += count
        usages, waits = [], []

        async def user() -> None:
            while not waiting.empty():
                begun = time.perf_counter()
                answer = await self.client.chat(_rag_request(waiting.get_nowait()))
                waits.append(time.perf_counter() - begun)
                usages.append(answer["usage"])

        begun, cpu = time.perf_counter(), self.cpu_s()
        await asyncio.gather(*(user() for _ in range(together)))
        return {
            "seconds": (time.perf_counter() - begun) / count,
            "cpu": (self.cpu_s() - cpu) / count,
            "wait": statistics.median(waits),
            "prompt": statistics.mean(usage["prompt_tokens"] for usage in usages),
            "cached": statistics.mean(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages),
            "answer": statistics.mean(usage["completion_tokens"] for usage in usages),
        }


async def _chat_rows(url: str, process: psutil.Process, load_s: float) -> list[Row]:
    async with ModelClient(url, timeout_s=120) as client:
        bench = _Bench(client, process)
        rows = [Row("runtime ready after start", load_s, "s", "< 15", load_s < 15)]
        await bench.stories(1, 8)
        rows.append(Row("chat, one answer", await bench.stories(1), "tokens/s"))
        rows.append(Row("chat, eight together", await bench.stories(8), "tokens/s"))
        fresh, shared = await bench.prefill()
        rows.append(Row("prompt read, nothing shared", fresh, "tokens/s"))
        rows.append(Row("prompt read, four fifths shared", shared, "tokens/s"))
        await bench.rag(8, 8)
        for together, count in ((1, 12), (4, 24), (8, 32)):
            figures = await bench.rag(together, count)
            what = f"RAG request, {together} at a time"
            beside = {name: figures[name] for name in ("cpu", "wait", "prompt", "cached", "answer")}
            # 400 of them in five minutes
            rows.append(Row(what, figures["seconds"], "s/request", "<= .75", figures["seconds"] <= 0.75, beside))
        rows.append(Row("runtime memory (RSS), both models", process.memory_info().rss / 2**20, "MiB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", default=SMOLLM2.quantization, choices=["q4_0", "q8_0"])
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tidemill-bench-models")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        rows = _embedding_rows(options.cache, scratch)
        begun = time.process_time()
        chat = prepare(SMOLLM2.quantized(options.form), scratch / "chat", cache_dir=options.cache)
        rows.append(Row(f"prepare chat weights as {options.form}", time.process_time() - begun, "CPU-s"))
        embedding = prepare(MINILM, scratch / "embedding", cache_dir=options.cache).files
        command = [sys.executable, "-m", "tidemill.models.runtime", "--threads", str(options.threads)]
        command += ["--chat", str(chat.files["weights"]), "--embed", str(embedding["weights"])]
        command += ["--tokenizer", str(embedding["tokenizer"])]
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[4]
            load_s = time.perf_counter() - begun
            try:
                rows += asyncio.run(_chat_rows(url, psutil.Process(process.pid), load_s))
            finally:
                process.terminate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(Row("memory of preparing (peak RSS of this process)", peak, "MiB"))
    write_rows("models" if options.form == SMOLLM2.quantization else f"models-{options.form}", rows)


if __name__ == "__main__":
    main()
