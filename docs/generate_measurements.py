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
- **Gateway, CPU per request.** Missed with everything on. The figure is the median ratio to nginx over interleaved
  rounds on one core. The bare route costs about what the thin gateway of the spine cost; three limits add about a half
  of that, the exact cache a quarter. The profile is flat: some 330 calls of Python functions a request, none above 4 %.
  Compiling the hot modules with mypyc gained nothing, since the time goes into objects handed between C libraries.
  Fewer layers and arrays instead of maps in the records took a third off; more of the same is the way on.
- **Gateway, throughput over TensorZero.** Missed for the same reason: limits, cache and traces are on here, off there.
- **Gateway, two workers on one core.** Two processes on one core share its caches and wake each other; each also keeps
  leases of its own. The ratio wavers by 0.2 between runs.
- **Gateway, the thin bar of 3x.** The spine's gateway met it (2.91). The full one, which replaced it, costs 3.0 to 3.4 on
  its bare route.
- **Gateway, added p99.** Measured over turns of one second, in which the first leases are taken and caches fill; not
  measured over longer ones yet.
- **Gateway, memory.** The long run is `--requests 2000000`; the figure's own text says how many were sent.
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
