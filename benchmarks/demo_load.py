"""Use the demo with 8 clients at once for two minutes, on this machine alone: `python -m benchmarks.demo_load`.

Each client draws with dials of its own, checks that the base's picture is the same each time and that all dials at 0
give the base, and now and then asks for an overlap.  Printed are requests, errors, waiting times, and what the server
holds in memory over time.  It is bounded in time and in requests, and asks nobody but the server that it starts itself.
"""

import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client
from jsonargparse import auto_cli

from sliders.console import say
from sliders.errors import SliderError

MEGABYTE = 2**20
PROMPTS = ("a person with a beard", "a person with long hair", "a person wearing glasses", "a bald person")


@dataclass
class Seen:
    """What the clients have seen; lists are appended to by all threads."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    bases: dict[str, set[str]] = field(default_factory=lambda: {prompt: set() for prompt in PROMPTS})


def use(url: str, number: int, end: float, most: int, seen: Seen) -> None:
    """One client until the time is over or it has asked often enough."""
    draws = random.Random(number)
    client = Client(url, verbose=False)
    keys = [one["key"] for one in client.predict(api_name="/sliders")["images"]]
    for k in range(most):
        if time.monotonic() > end:
            return
        prompt, still = draws.choice(PROMPTS), k % 5 == 4
        dials = {key: 0.0 if still else draws.uniform(-2, 2) for key in draws.sample(keys, min(2, len(keys)))}
        began = time.monotonic()
        try:
            drawn: dict[str, Any] = client.predict(dials=dials, prompt=prompt, seed=0, steps=8, api_name="/draw")
            if k % 10 == 9 and len(keys) > 1:
                client.predict(keys=keys[:2], api_name="/relations")
        except Exception as error:  # whatever it is, it is counted
            seen.errors.append(f"{type(error).__name__}: {error}")
            continue
        seen.seconds.append(time.monotonic() - began)
        seen.bases[prompt].add(drawn["base"])
        if still and drawn["turned"] != drawn["base"]:
            seen.errors.append("all dials at 0 did not give the base")


def resident(process: int) -> float:
    """MB that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / MEGABYTE


def demo_load(
    clients: int = 8,
    seconds: float = 120.0,
    most: int = 500,
    port: int = 7899,
    patience: float = 600.0,
    out: Path = Path("runs/demo_load"),
) -> None:
    """Measure it.

    Args:
        clients: at once.
        seconds: for so long.
        most: requests of a client.
        port: of 127.0.0.1 for the server.
        patience: seconds until the server must be there.
        out: folder of the server.
    """
    flags = ["--port", str(port), "--out", str(out), "--queue", "64"]
    server = subprocess.Popen([sys.executable, "-m", "sliders.cli.main", "demo", *flags])
    url, seen = f"http://127.0.0.1:{port}/", Seen()
    try:
        _wait(url, server, patience)
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=use, args=(url, k, end, most, seen)) for k in range(clients)]
        for thread in threads:
            thread.start()
        held: list[float] = []
        while any(thread.is_alive() for thread in threads):
            held.append(resident(server.pid))
            time.sleep(2)
        half = len(held) // 2
        early, late = (float(np.median(part)) for part in (held[half // 2 : half], held[half + half // 2 :]))
        unlike = sum(len(pictures) > 1 for pictures in seen.bases.values())
        p50, p95 = np.percentile(seen.seconds or [np.nan], [50, 95])
        say(
            f"{clients} clients, {seconds:g} s: {len(seen.seconds)} answers, {len(seen.errors)} errors",
            f"waiting: median {p50:.2f} s, 95 % {p95:.2f} s, longest {max(seen.seconds, default=0):.2f} s",
            f"server: {early:.0f} MB in the second quarter, {late:.0f} MB in the last, at most {max(held):.0f} MB",
            f"prompts whose base was not the same picture each time: {unlike}",
            *sorted(set(seen.errors)),
        )
        if seen.errors or unlike or not seen.seconds:
            sys.exit(1)
    finally:
        server.terminate()
        server.wait(30)


def _wait(url: str, server: subprocess.Popen[bytes], patience: float) -> None:
    """Until the page can be opened."""
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        try:
            Client(url, verbose=False)
        except Exception:  # not there yet
            time.sleep(1)
        else:
            return
    raise SliderError(f"the demo did not open at {url}")


if __name__ == "__main__":
    auto_cli(demo_load, as_positional=False)
