"""The editors of language models on the real one, as their papers measure them; see also `benchmarks.edits`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.edits import at_random, configured
from sliders import formats
from sliders.algebra.edit import Affine, Factored
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.function_vector import FunctionVector
from sliders.editors.memit import MEMIT
from sliders.editors.rome import ROME
from sliders.evaluation.texts.rewriting import rate_rewrites
from sliders.language.facts import read_rewrites
from sliders.language.in_context import Task, solved
from sliders.runtime.baking import baked

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backbone() -> CausalLMBackbone:
    """SmolLM2-135M-Instruct."""
    made = CausalLMBackbone()
    made.load()
    return made


def edit_in(file: Path) -> Affine:
    edit = formats.load_dial(file).at(1.0)
    assert isinstance(edit, Factored)
    return Affine(edit.elements())


@pytest.mark.parametrize("subject", ["France", "iron"])
def test_rome_changes_a_fact_and_its_paraphrases_and_leaves_its_neighbours(
    backbone: CausalLMBackbone, fitted: Callable[[str], Path], subject: str
) -> None:
    committed = configured(ROME, "rome")
    rome = replace(committed, subject=subject)
    before = rate_rewrites(backbone, [rome.fact])
    assert before.efficacy == 0
    edit = edit_in(fitted("rome")) if rome == committed else rome.fit(backbone)
    with baked(backbone, edit):
        after = rate_rewrites(backbone, [rome.fact])
    assert after.efficacy == after.said == 1
    assert after.paraphrase >= 0.5
    assert after.neighbourhood >= before.neighbourhood - 0.15
    with baked(backbone, at_random(backbone, edit, 0)):  # control
        assert rate_rewrites(backbone, [rome.fact]).efficacy == 0


def test_memit_changes_ten_facts_at_once(backbone: CausalLMBackbone, fitted: Callable[[str], Path]) -> None:
    facts = read_rewrites(configured(MEMIT, "memit").facts)
    assert len(facts) == 10
    edit = edit_in(fitted("memit"))
    found = []
    for placed in (Affine({}), edit, at_random(backbone, edit, 0)):
        with baked(backbone, placed):
            found.append(rate_rewrites(backbone, facts))
    before, after, control = found
    assert after.efficacy >= 0.8
    assert after.paraphrase >= before.paraphrase + 0.3
    assert after.neighbourhood >= before.neighbourhood - 0.15
    assert max(before.efficacy, control.efficacy) <= 0.2


def test_a_function_vector_does_the_task_without_its_examples(
    backbone: CausalLMBackbone, fitted: Callable[[str], Path]
) -> None:
    task = Task.load(configured(FunctionVector, "function_vector").task)
    edit = edit_in(fitted("function_vector"))
    found = []
    for placed in (Affine({}), edit, at_random(backbone, edit, 0)):
        with baked(backbone, placed):
            found.append(solved(backbone, task, task.heldout, 0)[0])
    before, after, control = found
    assert solved(backbone, task, task.heldout, 10)[0] >= 0.9
    assert max(before, control) <= 0.1
    assert after >= 0.4
