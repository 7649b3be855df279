"""Evaluates slowly, so that a test can kill it: arguments are the ledger's folder and a file that counts the asking."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tidemill.evaluation import Answer, Subject, exact, load_cases, run_evaluation
from tidemill.kernel import Digest, Scope
from tidemill.ledger import open_ledger


def main() -> None:
    folder, asked = Path(sys.argv[1]), Path(sys.argv[2])

    async def answer(question: str) -> Answer:
        with asked.open("a", encoding="utf-8") as file:
            file.write(question + "\n")
        await asyncio.sleep(0.01)
        return Answer(text=question)

    with open_ledger(f"sqlite:///{folder}/ledger.db", blobs=str(folder / "blobs"), scope=Scope("demo")) as ledger:
        subject = Subject(release=Digest("sha256:" + "1" * 64), answer=answer)
        cases = load_cases(ledger, "dataset/questions")
        report = asyncio.run(run_evaluation(ledger, subject=subject, cases=cases, scorers=[exact()], name="r"))
        print(report.metrics["exact"].n)


main()
