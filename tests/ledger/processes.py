"""Starts writers of ``tests.ledger.writer`` and kills them. Shared by the tests and the benchmark."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from tidemill.kernel import Scope
from tidemill.ledger import open_ledger

WRITER = Path(__file__).with_name("writer.py")


def start_writer(url: str, project: str, writer: str, count: int) -> subprocess.Popen[str]:
    """A child that has opened the store and waits for the word."""
    command = [sys.executable, str(WRITER), url, project, writer, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def go(children: list[subprocess.Popen[str]]) -> None:
    """Wait until every child is ready, then let all write at once."""
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()


def kill_writers(url: str, project: str, kills: int, *, writers: int = 2, seed: int | None = None) -> tuple[int, int]:
    """Kill writers at random moments, again and again.

    Returns:
        How many decisions were acknowledged, and how many of those the store does not hold.
    """
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    killed = 0
    while killed < kills:
        children = [start_writer(url, project, f"w{n}", 0) for n in range(min(writers, kills - killed))]
        go(children)
        for child in children:
            time.sleep(chance.uniform(0.0, 0.15))
            child.kill()
            killed += 1
        for child in children:
            said, complaint = child.communicate()
            assert not complaint, complaint
            # A line cut off by the kill was not acknowledged.
            acknowledged.update(line for line in said.splitlines(keepends=True) if line.endswith("\n"))
    with open_ledger(url, blobs="memory://", scope=Scope(project)) as ledger:
        report = ledger.audit.verify()
        assert report.ok, report.reason
        kept = {decision.decision_id for decision in ledger.decisions.list()}
    return len(acknowledged), len({line.strip() for line in acknowledged} - kept)


def write_together(url: str, project: str, processes: int, commits: int) -> tuple[float, list[str]]:
    """Let processes record decisions at the same time.

    Returns:
        Seconds from the word until the last was done, and what the children complained about.
    """
    children = [start_writer(url, project, f"w{n}", commits) for n in range(processes)]
    go(children)
    began_s = time.monotonic()
    complaints = [child.communicate()[1] for child in children]
    return time.monotonic() - began_s, [complaint for complaint in complaints if complaint]
