"""Resident memory of a worker over millions of plain requests, streams, disconnects and errors."""

from __future__ import annotations

import statistics
import threading
from pathlib import Path

from gateway.churn import Load
from gateway.rig import MODEL, PLAIN_MODEL, Rig, rss_mb
from rows import Row
from tidemill.telemetry.reading import hold_if_abandoned

#: Share of the requests after which the worker is warm: caches of names, ids and answers are filled by then.
WARM = 0.25
TURN_S = 10.0


class Broom:
    """Removes segments that are finished, as the drainer does, so that the disk does not fill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sweep, daemon=True)
        self._thread.start()

    def _sweep(self) -> None:
        while not self._stop.wait(2.0):
            for path in self._folder.glob("*/*.seg"):
                try:
                    with hold_if_abandoned(path) as abandoned:
                        if abandoned:
                            path.unlink()
                except FileNotFoundError:
                    continue

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def memory_rows(rig: Rig, requests: int) -> list[Row]:
    """Slope and peak of resident memory."""
    gateway = rig.gateway(rig.stream_upstream(), plain=rig.plain_upstream())
    body = rig.folder / "body-plain.json"
    body.write_text(rig.body.read_text().replace(MODEL, PLAIN_MODEL))
    broom = Broom(gateway.segments)
    points: list[tuple[float, float]] = []
    done, turn = 0, 0
    try:
        while done < requests:
            load = Load(rig, gateway, f"memory-{turn}", TURN_S, "mixed")
            done += rig.wrk(gateway.port, TURN_S, body=body)
            found, _ = load.finish()
            done += found["answered"]
            if found.get("unexpected"):
                raise SystemExit(f"requests ended otherwise than they should: {found}")
            turn += 1
            points.append((done / 1e6, rss_mb(gateway.pids[0])))
            if turn % 10 == 1:
                print(f"{done:>9} requests, {points[-1][1]:.1f} MB", flush=True)
    finally:
        broom.stop()
    return slope_rows(points, requests)


def slope_rows(points: list[tuple[float, float]], requests: int) -> list[Row]:
    """Megabytes a million requests, by the Theil-Sen estimator (median of pairwise slopes; Sen 1968) once warm."""
    warm = [point for point in points if point[0] >= WARM * requests / 1e6]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(warm)
        for later in warm[place + 1 :]
    ]
    slope = statistics.median(slopes)
    residuals = [mb - slope * at for at, mb in warm]
    noise = statistics.pstdev(residuals)
    span = warm[-1][0] - warm[0][0]
    peak = max(mb for _, mb in points)
    label = f"resident memory over {points[-1][0]:.2g} million mixed requests"
    # Flat: over the whole run it drifts by no more than it wavers (and half a megabyte of the allocator's).
    flat = slope * span <= 2 * noise + 0.5
    return [
        Row(f"{label}: slope", slope, "MB/million", "within noise", flat, {"noise (MB)": noise}),
        Row(f"{label}: most", peak, "MB", "< 120", peak < 120, {"after the first turn": points[0][1]}),
    ]
