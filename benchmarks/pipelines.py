"""What the rehearsed backbone costs: `python -m benchmarks.pipelines`.

On tiny pipelines of the true classes, where what is not the network weighs most.  Ratios are of one run, each of the
least of several repeats.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import nn

from sliders.backbones.rehearsed.backbone import PipelineBackbone
from tests.families import FAMILIES, family

EMBEDDED = "avatars-flow"


def _least(run: Callable[[], Any], repeats: int) -> float:
    """Seconds."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found)


def _made(name: str) -> PipelineBackbone:
    if name == EMBEDDED:
        made = PipelineBackbone(name)
        made.load()
        return made
    known = FAMILIES[name]
    made = PipelineBackbone(name, height=known.side, width=known.side, call=known.call, words=24)
    made.use(family(name))
    return made


@torch.no_grad()
def _row(name: str, rows: int, repeats: int) -> str:
    """What one model costs, as a row of the table."""
    model = _made(name)
    network: nn.Module = model.pipeline.transformer
    before = {key: value.data_ptr() for key, value in network.state_dict().items()}
    begun = time.perf_counter()
    model._known()
    checked = time.perf_counter() - begun
    conditioning, start = model.encode(["a person"] * rows), model.start(range(rows))
    state = next(model.trajectory(lambda asked: torch.zeros_like(asked["latents"]), start, 4, range(rows)))
    size, layout = model.size(), model._known().arguments
    given = layout.given(layout.of_one_row(model._rehearsals.example(size)), state["latents"], state, conditioning)
    by_hand = ours = float("inf")
    for _ in range(repeats):  # in turn, so that both meet the same machine
        by_hand = min(by_hand, _least(lambda: network(**given, return_dict=False), 1))
        ours = min(ours, _least(lambda: model.predict(state, conditioning), 1))
    rehearsal = _least(lambda: model._rehearsals.rehearse(["a"], size, steps=50), repeats)
    same = all(value.data_ptr() == before[key] for key, value in network.state_dict().items())
    milliseconds = [f"{1000 * value:.1f}" for value in (by_hand, rehearsal, checked)]
    return f"| {name} | {ours / by_hand:.3f} | {' | '.join(milliseconds)} | {'none' if same else 'some'} |"


def measure(families: list[str] | None = None, rows: int = 8, repeats: int = 15) -> None:
    """Print, a line a family, what a prediction costs beside the transformer's own call, and what rehearsals take.

    Args:
        families: names in `tests.families`, and the embedded model's.
        rows: of a prediction.
        repeats: of everything.
    """
    print(
        "| model | predict, by hand = 1 | by hand, ms | rehearsal of 50 steps, ms | self-check, ms | weights copied |"
    )
    print("|---|---|---|---|---|---|")
    for name in families or [EMBEDDED, "sd3", "flux", "qwen", "zimage", "wan"]:
        print(_row(name, rows, repeats))


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(measure, as_positional=False)
