"""Methods x properties on one model: `python -m benchmarks.methods --config configs/tables/avatars.yaml`.

Fits every edit of the config with two seeds, and each pair on each other, and measures which laws hold at the levels of
weights, fitting and behaviour.  Writes one page.  What is measured is kept, so that the command goes on where it
stopped, and run again gives the same page.
"""

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from sliders.backbones.base import AbstractBackbone
from sliders.concept import read_prompts
from sliders.evaluation.settings import Settings, settled
from sliders.files import write_text
from sliders.media.base import medium_of
from sliders.studies.methods import report
from sliders.studies.methods.fits import ComparedEdit, FittedEdits
from sliders.studies.methods.study import Study

OF_ONE = ("idempotence", "oddness", "additivity to -2", "additivity to +2", "curvature")
OF_TWO = ("interaction", "order of application", "order of fitting")


def main(
    backbone: AbstractBackbone,
    edits: dict[str, ComparedEdit],
    out: Path,
    prompts: Path,
    pairs: list[tuple[str, str]] | None = None,
    chains: list[tuple[str, str, str]] | None = None,
    expected: dict[str, dict[str, bool]] | None = None,
    target: str = "",
    states: int = 12,
    how: Settings | None = None,
    folder: Path = Path("runs/methods"),
) -> None:
    """Measure all cells and write the page.

    Args:
        backbone: the model.
        edits: by name.
        out: the page.
        prompts: a text file with the scenes' prompts, or the messages to a language model.
        pairs: of unlike methods; those of one method are all measured.
        chains: names of the edits a -> b, b -> c and a -> c.
        expected: of each method, what theory says of its properties; where it is wrong, the page has it in bold.
        target: of a language model, the instruction that the messages are answered under.
        states: scenes whose states are compared.
        how: the base makes the scenes.
        folder: where fitted edits and cells are kept.
    """
    start = time.monotonic()
    backbone.load()
    texts = read_prompts(prompts)
    medium = medium_of(backbone)
    compared_at = medium.states(backbone, texts, states, target, None if how is None else settled(how, medium.how))
    study = Study(FittedEdits(backbone, edits, folder), compared_at, folder)
    methods: dict[str, list[str]] = {}
    for name, entry in edits.items():
        methods.setdefault(entry.method, []).append(name)
    compared = [pair for names in methods.values() for pair in itertools.combinations(names, 2)] + (pairs or [])

    def over(things: list[Any], measure: Any) -> dict[str, Any]:
        found = {}
        for one in things:
            name = one if isinstance(one, str) else " | ".join(one)
            found[name] = measure(*([one] if isinstance(one, str) else one))
            print(f"{time.monotonic() - start:6.0f} s  {measure.__name__}  {name}", flush=True)
        return found

    single = over(list(edits), study.weights)
    of_pairs = over(compared, study.weights_of_pair)
    told = over(list(edits), study.behaviour)
    told_pairs = over(compared, study.behaviour_of_pair)
    told_chains = over(chains or [], study.chain)
    transitive = study.transitive(list(edits))
    page = [
        f"# Methods and properties: {backbone.base_model}",
        "## From the weights",
        report.weights_table(methods, single, of_pairs, expected or {}),
        f"Commuting is {'' if transitive['holds'] else 'not '}transitive over them: {transitive['reason']}.",
        report.pairs_table(of_pairs),
        f"## Behaviour, at {len(compared_at.base)} states of {compared_at.scenes} scenes",
        report.gaps_table(told, OF_ONE),
        "## Pairs: behaviour and fitting",
        report.gaps_table(told_pairs, OF_TWO),
        report.refits_table(told_pairs),
        *(report.chain_list(names, orders) for names, orders in told_chains.items()),
    ]
    write_text(out, "\n\n".join(page) + "\n")
    print(f"{time.monotonic() - start:6.0f} s  {out}", flush=True)


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    auto_cli(main, as_positional=False)
