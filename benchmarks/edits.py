"""What the editors of language models reach on the small real model: `python -m benchmarks.edits`.

ROME rewrites each fact of its file alone and MEMIT all at once; a function vector does a task without examples.  Beside
each stands the same edit with its directions drawn anew: it reads the same, and writes as much, at random.  Every
measurement is kept in a file of its own, so that the run can be taken up again.  Writes `docs/edits_language.md`.
"""

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from jsonargparse import auto_cli
from torch import Tensor

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import read_prompts
from sliders.editors.contrast import writer
from sliders.editors.function_vector import FunctionVector
from sliders.editors.memit import MEMIT
from sliders.editors.rome import ROME
from sliders.evaluation.texts.dose import on_neutral_text
from sliders.evaluation.texts.rewriting import rate_rewrites
from sliders.evaluation.texts.settings import NEUTRAL
from sliders.files import write_text
from sliders.language.facts import Rewrite, read_rewrites
from sliders.language.in_context import Task, solved
from sliders.language.recall import run
from sliders.runtime.baking import baked
from sliders.runtime.layers import layer_weights, weight_shape

CONFIGS = Path("configs/editors")
TUNING = Path("data/text/edits/tuning.yaml")
ROME_BLOCKS = (5, 8, 12)
MEMIT_BLOCKS = ((6, 7, 8), (8,))
MEMIT_WEIGHTS = (1.0, 100.0, 1000.0)
VECTOR_BLOCKS = (5, 8, 9, 11, 13, 16)
Row = dict[str, float]
T = TypeVar("T")


def configured(kind: type[T], name: str) -> T:
    """The editor of a committed config."""

    def given(editor: T) -> T:
        return editor

    given.__annotations__["editor"] = kind
    file = CONFIGS / f"{name}.yaml"
    return auto_cli(given, args=["--config", str(file)], as_positional=False)  # pyright: ignore[reportReturnType]


def at_random(backbone: CausalLMBackbone, edit: Affine, seed: int) -> Affine:
    """The control: what an edit adds to each layer, with the directions that it writes drawn anew at equal size."""
    elements = {}
    for k, (name, element) in enumerate(edit.items()):
        u, s, vh = element.displacement(*layer_weights(backbone, name)).trim().svd()
        drawn = torch.randn(u.shape, generator=torch.Generator().manual_seed(100 * seed + k))
        shift = LowRank(torch.linalg.qr(drawn).Q.to(u) * s, vh, (len(u), vh.shape[1]))
        elements[name] = Element.of(element.shape, shift=shift)
    return Affine(elements)


def rated(backbone: CausalLMBackbone, edit: Affine, facts: Sequence[Rewrite]) -> Row:
    """The scores of facts with an edit in place."""
    with baked(backbone, edit):
        return asdict(rate_rewrites(backbone, facts))


def neutral(backbone: CausalLMBackbone, edit: Affine) -> Row:
    """Perplexity of neutral text, and divergence from the base there."""

    def turn(dials: Tensor) -> AbstractContextManager[None]:
        return baked(backbone, edit) if float(dials[0]) else nullcontext()

    perplexity, divergence = on_neutral_text(backbone, turn, [1.0], read_prompts(NEUTRAL))
    return {"perplexity": perplexity[0], "divergence": divergence[0]}


def edits_facts(backbone: CausalLMBackbone, editor: ROME | MEMIT, facts: Sequence[Rewrite]) -> dict[str, Row]:
    """Before, after, and the control; with what it does to neutral text."""
    start = time.process_time()
    edit = editor.fit(backbone)
    seconds = time.process_time() - start
    return {
        name: {**rated(backbone, placed, facts), **neutral(backbone, placed), "seconds": seconds}
        for name, placed in (("before", Affine({})), ("after", edit), ("random", at_random(backbone, edit, 0)))
    }


@torch.no_grad()
def residual_difference(backbone: CausalLMBackbone, editor: FunctionVector, task: Task) -> Affine:
    """The baseline: how the states after the block differ between prompts with examples and those without."""
    chance = random.Random(0)
    words = chance.choices(list(task.examples), k=editor.prompts)
    means = [
        run(backbone, backbone.encode_plain([task.prompt(w, shots, chance) for w in words]), editor.block)[0][:, -1]
        for shots in (editor.shots, 0)
    ]
    target = writer(backbone, editor.block)
    return Affine({target: steer_output((means[0] - means[1]).mean(0), weight_shape(backbone, target))})


def does_a_task(backbone: CausalLMBackbone, editor: FunctionVector) -> dict[str, Row]:
    """Accuracy on held-out words: of the base with and without examples, and of the vectors without."""
    task = Task.load(editor.task)

    def row(shots: int, edit: Affine | None = None, shuffled: bool = False) -> Row:
        edit = Affine({}) if edit is None else edit
        with baked(backbone, edit):
            accuracy, likely = solved(backbone, task, task.heldout, shots, shuffled)
        return {"accuracy": accuracy, "likelihood": likely, **neutral(backbone, edit)}

    start = time.process_time()
    edit = editor.fit(backbone)
    seconds = time.process_time() - start
    return {
        "no examples": row(0),
        f"{editor.shots} examples": row(editor.shots),
        f"{editor.shots} examples, answers shuffled": row(editor.shots, shuffled=True),
        "function vector": {**row(0, edit), "seconds": seconds},
        "a random vector as long": row(0, at_random(backbone, edit, 0)),
        "difference of the states": row(0, residual_difference(backbone, editor, task)),
    }


def kept(file: Path, measure: Callable[[], dict[str, Row]]) -> dict[str, Row]:
    """A measurement that is kept in a file."""
    if not file.exists():
        write_text(file, json.dumps(measure(), indent=1))
        print(file, file.read_text(), flush=True)
    return json.loads(file.read_text())


def rome_at(backbone: CausalLMBackbone, rome: ROME, block: int) -> Row:
    """ROME at a block, on the facts for tuning, each alone."""
    alone = [replace(rome, facts=TUNING, subject=fact.subject, block=block) for fact in read_rewrites(TUNING)]
    return mean([rated(backbone, editor.fit(backbone), [editor.fact]) for editor in alone])


def vector_at(backbone: CausalLMBackbone, vector: FunctionVector, edit: Affine, block: int) -> Row:
    """A function vector added after another block, on the words that examples are made of."""
    task, (element,) = Task.load(vector.task), edit.values()
    with baked(backbone, Affine({writer(backbone, block): element})):
        accuracy, likely = solved(backbone, task, task.examples, 0)
    return {"accuracy": accuracy, "likelihood": likely}


def choose_all(
    backbone: CausalLMBackbone, runs: Path, rome: ROME, memit: MEMIT, vector: FunctionVector
) -> dict[str, Row]:
    """What blocks and weights reach on facts and words that nothing is reported on."""
    rome.covariance.fit(backbone, [writer(backbone, k) for k in {*ROME_BLOCKS, *itertools.chain(*MEMIT_BLOCKS)}])
    tried = [
        kept(runs / f"choose_rome_{k}.json", lambda k=k: {f"ROME, block {k}": rome_at(backbone, rome, k)})
        for k in ROME_BLOCKS
    ]
    for blocks, weight in itertools.product(MEMIT_BLOCKS, MEMIT_WEIGHTS):
        editor = replace(memit, facts=TUNING, blocks=list(blocks), weight=weight)
        name = f"MEMIT, blocks {', '.join(map(str, blocks))}, weight {weight:g}"

        def measure(name: str = name, editor: MEMIT = editor) -> dict[str, Row]:
            return {name: rated(backbone, editor.fit(backbone), read_rewrites(TUNING))}

        tried.append(kept(runs / f"choose_memit_{'_'.join(map(str, blocks))}_{weight:g}.json", measure))

    def vectors() -> dict[str, Row]:
        edit = vector.fit(backbone)
        return {f"function vector, block {k}": vector_at(backbone, vector, edit, k) for k in VECTOR_BLOCKS}

    tried.append(kept(runs / "choose_function_vector.json", vectors))
    return {name: row for found in tried for name, row in found.items()}


def mean(rows: Sequence[Row]) -> Row:
    """Of every number."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def facts_table(title: str, found: dict[str, Row]) -> list[str]:
    """Lines of the table of rewritten facts."""
    columns = ("efficacy", "paraphrase", "neighbourhood", "said", "margin", "perplexity", "divergence")
    digits = (2, 2, 2, 2, 2, 1, 3)
    return [
        " | ".join([f"| {title}, {name}", *(f"{row[c]:.{d}f}" for c, d in zip(columns, digits, strict=True))]) + " |"
        for name, row in found.items()
    ]


def main(runs: Path = Path("runs/edits"), out: Path = Path("docs/edits_language.md"), choose: bool = False) -> None:
    """Measure all three.

    Args:
        runs: where measurements are kept.
        out: the tables' file; what stands in it above the first table is kept.
        choose: try blocks and weights instead, on other facts, and print what they reach.
    """
    backbone = CausalLMBackbone()
    backbone.load()
    rome, memit = configured(ROME, "rome"), configured(MEMIT, "memit")
    vector = configured(FunctionVector, "function_vector")
    if choose:
        for name, row in choose_all(backbone, runs, rome, memit, vector).items():
            print(name, {key: round(value, 3) for key, value in row.items()})
        return
    facts = read_rewrites(rome.facts)
    alone = [
        kept(
            runs / f"rome_{fact.subject}.json",
            lambda f=fact: edits_facts(backbone, replace(rome, subject=f.subject), [f]),
        )
        for fact in facts
    ]
    one = {name: mean([found[name] for found in alone]) for name in alone[0]}
    many = kept(runs / "memit.json", lambda: edits_facts(backbone, memit, facts))
    task = kept(runs / "function_vector.json", lambda: does_a_task(backbone, vector))
    head = "| | new above old | paraphrases | neighbours | said | P(new) − P(old) | perplexity | KL to base |"
    lines = [head, "|---" * 8 + "|", *facts_table(f"ROME, one of {len(facts)}", one)]
    lines += [*facts_table(f"MEMIT, {len(facts)} at once", many), ""]
    lines += ["| prompt | accuracy | log P(answer) | perplexity | KL to base |", "|---" * 5 + "|"]
    lines += [
        f"| {name} | {r['accuracy']:.2f} | {r['likelihood']:.2f} | {r['perplexity']:.1f} | {r['divergence']:.3f} |"
        for name, r in task.items()
    ]
    before = out.read_text().partition("\n| ")[0].rstrip() + "\n\n" if out.exists() else ""
    write_text(out, before + "\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    auto_cli(main, as_positional=False)
