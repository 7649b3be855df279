"""Writes docs/reference/measurements.md from benchmarks/results/*.json: each figure, its bar, what was beside it."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "measurements.md"

HEAD = """\
# Measurements

Printed by the programs in `benchmarks/` (`make bench-NAME`) on a machine with two cores and no GPU, and collected here
by `python docs/generate_measurements.py`. "Missed" is said where a bar was missed; the reasons stand in
[the notes below](#notes). Times on other machines differ; ratios differ less.
"""

NOTES = """\
- **Gateway, CPU per request.** The figure is the median ratio to nginx over interleaved rounds on one core; it wavers
  between 2.7 and 3.5 with what else the machine does. It was 5.4 to 6.3 before limits were leased by plain SQL instead of
  through an object layer, plain calls took shorter ways, and records were written in fewer steps. The bare route is at
  2.2 to 2.6, of which the kernel and the event loop alone are about 1.
- **Gateway, throughput over TensorZero.** Missed: limits, cache and traces are on here, off there.
- **Gateway, two workers on one core.** Two processes on one core share its caches, and each keeps leases of its own. The
  bare route costs 1.04 to 1.10, everything on 1.2 to 1.4; nginx's own two workers stand beside it.
- **Gateway, added p99.** The lease thread's object layer held the interpreter for up to the switch interval; that is
  mended. The figure is of ten-second turns after a warm-up. It needs a machine on which nothing else runs.
- **Gateway, memory.** The long run is `--requests 2000000`; the figure's own text says how many were sent.
- **Telemetry, ingest.** CPU of the whole server, from the socket until the last span can be asked for, monitors and
  metrics included. MLflow of today takes 1,066 spans a CPU-second in requests of 500, three times what was measured when
  the bar of twelve was set, so that one is missed; it neither masks nor indexes text. A span costs about 155 us: 55 to
  decode, map and mask, 50 to 60 to store, the rest HTTP, fsync, encryption and the loops that follow.
- **Telemetry, questions.** Ten million spans are one million committed, their narrow rows copied to ten days; a million
  texts of 1 KB. The look-ups that miss were measured beside other work on the two cores; CPU stands beside them. A trace
  of 10,000 spans is read into 10,000 records of Python, which is most of its time.
- **Telemetry, questions while spans arrive.** One interpreter decodes and answers. While spans stream in, a question is
  answered from what is stored and waits for no drain.
- **Base install.** Bytes of the files as the distributions ship them. Python's own bytecode comes on top as modules are
  first imported; `make demo` installs with `--no-compile`, so only what is used is compiled.
- **Demo.** The decisions are what the evidence says on that day: answers of a model that shares two cores with others
  are not repeatable to the letter, and an undecided rollout is held and said to be held.
- **Demo, deaths.** Each kill is in a further demo in the same folder: builds and evaluations come from the cache, the
  traffic and the rollouts are new.
- **Demo, SIGKILL of the supervisor.** Missed at first: the kill fell into the shadow of release 2, copies sent while its
  process was starting again went unanswered, scored 0 and failed the shadow. Since then a request that nobody answered
  makes no pair (`tests/loop/test_drivers.py`). The row is of a later run, `--kill supervisor`, at the same moment of a
  demo that took five times as long, for the machine was busy.
- **Embeddings, least cosine.** The mean holds; the least of the passages is .989, since int8 activations are rounded by
  batch.
- **Chat model.** 135 million parameters answer in whole sentences and seldom in the expected words, so token F1 is low
  for every release; what the second release improves is which documents are found and shown.
- **Lineage.** Medians; the trace references are in DuckDB, the graph in SQLite or PostgreSQL, both in one process.
"""


def table(name: str, rows: list[dict[str, object]]) -> str:
    """One benchmark as a Markdown table."""
    lines = [f"\n## make bench-{name}\n", "| figure | value | bar | | beside |", "|---|---|---|---|---|"]
    for row in rows:
        mark = {True: "holds", False: "**missed**", None: ""}[row["holds"]]  # type: ignore[index]  # a JSON bool or null
        beside = ", ".join(f"{peer} {value:.4g}" for peer, value in dict(row["beside"]).items())  # type: ignore[call-overload]  # a JSON object
        lines.append(f"| {row['figure']} | {row['value']:.4g} {row['unit']} | {row['bar']} | {mark} | {beside} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    tables = [table(file.stem, json.loads(file.read_text())) for file in files]
    return "".join([HEAD, *tables, "\n## Notes\n\n", NOTES])


if __name__ == "__main__":
    PAGE.write_text(page())
