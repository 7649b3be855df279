"""``tidemill up`` from end to end: the example project, answered by a scripted provider, asked by the openai client.

While a client asks without a pause, every process in turn is killed; answers must come again, and no answer and no
feedback that was acknowledged may be missing in the span store.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from tests.cli.shop import PRICE, Shop, answers_well, make_shop
from tests.server.children import runs, wait_until
from tidemill.loop.project import open_project
from tidemill.server.supervisor import free_port, listening_socket
from tidemill.serving.testing import ScriptedModel, ScriptedServer
from tidemill.telemetry import ScoreQuery, open_span_store

QUESTION = "What does a flat tyre cost?"


@dataclass
class Desk:
    """The project, its running stack, and a client of it."""

    shop: Shop
    key: str
    process: subprocess.Popen[bytes] | None = None
    acknowledged: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)

    @property
    def client(self) -> openai.OpenAI:
        url = self.shop.json("status")["gateway"]
        return openai.OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=10)

    def up(self) -> None:
        log = (self.shop.folder / "up.log").open("ab")
        command = [sys.executable, "-m", "tidemill.cli", "up", "--project", str(self.shop.folder)]
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.ready, within_s=40, what="ready to answer")

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.shop.folder / "up.log").read_text()
        control = self.shop.json("status")["control"]
        return control is not None and any(one["ready"] for one in control["endpoints"])

    def down(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(30) == 0

    def pids(self) -> dict[str, int]:
        return {name: one["pid"] for name, one in self.shop.json("status")["processes"].items()}

    def ask(self, client: openai.OpenAI, number: int) -> None:
        """One question, streamed every second time, and feedback: noted once the last byte is here."""
        create = client.chat.completions.with_raw_response.create
        stream = number % 2 == 1
        messages: Any = [{"role": "user", "content": QUESTION}]
        raw = create(model="shop", messages=messages, stream=stream, extra_headers={"x-tidemill-session": f"s{number}"})
        answer: Any = raw.parse()
        text = answer.choices[0].message.content if not stream else "".join(map(_piece, answer))
        assert text == PRICE
        trace_id = raw.headers["x-tidemill-trace-id"]
        self.acknowledged.append(trace_id)
        client.post("/feedback", cast_to=object, body={"trace_id": trace_id, "value": 1})
        self.judged.append(trace_id)

    @contextmanager
    def asked_all_the_time(self) -> Iterator[None]:
        stop, client = threading.Event(), self.client
        surprises: list[BaseException] = []

        def go_on() -> None:
            number = 0
            while not stop.wait(0.02):
                number += 1
                try:
                    self.ask(client, number)
                except (openai.APIConnectionError, openai.APIStatusError, openai.APIError):
                    time.sleep(0.1)  # it was killed: what was not acknowledged may be lost
                except BaseException as surprise:
                    surprises.append(surprise)
                    return

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            client.close()
        assert surprises == []

    def answers_again(self) -> None:
        before = len(self.judged)
        wait_until(lambda: len(self.judged) > before + 2, within_s=40, what="answers come again")


def _piece(chunk: Any) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("up") / "shop"
    with ScriptedServer(ScriptedModel(answers_well)) as server:
        shop = make_shop(folder, model_url=server.url, ports=[free_port() for _ in range(3)])
        shop.change("gateway", "workers", to=2)
        for command in (
            ("apply",),
            ("models", "pull", "scripted"),
            ("data", "build", "shop"),
            ("index", "build", "shop"),
            ("release", "create", "shop"),
            ("rollout", "start", "shop", "shop@1"),
        ):
            shop.ok(*command)
        desk = Desk(shop, shop.json("keys", "issue", "me")["key"])
        yield desk
        if desk.process is not None and desk.process.poll() is None:
            desk.process.kill()
            desk.process.wait()


def stored(desk: Desk) -> tuple[set[str], set[str]]:
    """Traces with an answer, and traces with feedback, as the stopped project's store has them."""
    with open_project(desk.shop.folder) as project:
        store = open_span_store(project.places.spans, project.settings.scope)
        try:
            answers = {
                trace_id
                for trace_id in desk.acknowledged
                if any(one.span.arm and one.span.status == "ok" for one in store.trace(trace_id))
            }
            scores = store.scores(ScoreQuery(names=("feedback",), limit=1_000_000))
        finally:
            store.close()
        assert project.ledger.audit.verify().ok
    return answers, {one.score.trace_id for one in scores}


def kill(desk: Desk, name: str) -> None:
    os.kill(desk.pids()[name], signal.SIGKILL)


def restart_killed(desk: Desk) -> None:
    """Kill the supervisor; its children end by themselves; start it again."""
    assert desk.process is not None
    children = desk.pids()
    desk.process.kill()
    desk.process.wait()
    desk.up()
    assert not any(runs(pid) for pid in children.values())


def test_answers_survive_the_death_of_every_process(desk: Desk) -> None:
    begun_s = time.monotonic()
    desk.up()
    assert time.monotonic() - begun_s < 30  # the bar of 15 s is a benchmark's, on a machine at rest
    status = desk.shop.json("status")
    serving = next(name for name in status["processes"] if name.startswith("serving-"))
    assert {"server", "gateway-0", "gateway-1"} < set(status["processes"])
    with desk.asked_all_the_time():
        desk.answers_again()
        for name in ("gateway-0", "server", serving, "gateway-1"):
            kill(desk, name)
            desk.answers_again()
        wait_until(desk.ready, within_s=30)
        assert all(one["restarts"] >= 1 for one in desk.shop.json("status")["processes"].values())
        restart_killed(desk)
        desk.answers_again()
        trace_id = desk.judged[-1]
        lineage = desk.shop.json("lineage", f"trace:{trace_id}")
    assert any(node["id"].startswith("file:") for node in lineage["nodes"])
    pids = desk.pids()
    desk.down()
    assert not any(runs(pid) for pid in pids.values())
    answers, judged = stored(desk)
    assert set(desk.acknowledged) - answers == set()
    assert set(desk.judged) - judged == set()
    assert not list((desk.shop.folder / ".tidemill" / "segments").glob("*/*.key")), "keys of drained segments remain"
    assert desk.shop.json("status")["running"] is False


def test_a_second_instance_and_a_taken_port_are_sentences(desk: Desk) -> None:
    command = [sys.executable, "-m", "tidemill.cli", "up", "--project", str(desk.shop.folder)]
    run_folder = desk.shop.folder / ".tidemill" / "run"
    from tidemill.server.supervisor import InstanceLock

    lock = InstanceLock(run_folder)
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lock.release()
    assert second.returncode == 2
    assert second.stderr.startswith("tidemill: Tidemill already runs on")
    assert "Traceback" not in second.stderr
    port = int(desk.shop.json("status")["gateway"].rpartition(":")[2].partition("/")[0])
    with listening_socket("127.0.0.1", port, "gateway"):
        taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert taken.returncode == 2
    assert f"The gateway cannot listen on 127.0.0.1:{port}: Address already in use." in taken.stderr
    assert "gateway.port in tidemill.yaml" in taken.stderr
    assert "Traceback" not in taken.stderr


@pytest.mark.soak
def test_many_deaths_at_random_moments(desk: Desk) -> None:
    chance = random.Random(5)
    desk.up()
    with desk.asked_all_the_time():
        for _ in range(30):
            time.sleep(chance.uniform(0.0, 3.0))
            pids = desk.pids()
            name = chance.choice([*pids, "supervisor"])
            if name == "supervisor":
                restart_killed(desk)
            else:
                with suppress(ProcessLookupError):  # dead already, and not started again yet
                    os.kill(pids[name], signal.SIGKILL)
            desk.answers_again()
    desk.down()
    answers, judged = stored(desk)
    assert set(desk.acknowledged) - answers == set()
    assert set(desk.judged) - judged == set()
    print(json.dumps({"answers": len(answers), "feedback": len(judged)}))
