"""The editors of language models on the real one, as their papers measure them; see also `benchmarks.edits`."""

from dataclasses import replace

import pytest

from benchmarks.edits import at_random, configured
from sliders.algebra.edit import Affine
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


@pytest.mark.parametrize("subject", ["France", "iron"])
def test_rome_changes_a_fact_and_its_paraphrases_and_leaves_its_neighbours(
    backbone: CausalLMBackbone, subject: str
) -> None:
    rome = replace(configured(ROME, "rome"), subject=subject)
    before = rate_rewrites(backbone, [rome.fact])
    assert before.efficacy == 0
    edit = rome.fit(backbone)
    with baked(backbone, edit):
        after = rate_rewrites(backbone, [rome.fact])
    assert after.efficacy == after.said == 1
    assert after.paraphrase >= 0.5
    assert after.neighbourhood >= before.neighbourhood - 0.15
    with baked(backbone, at_random(backbone, edit, 0)):  # control
        assert rate_rewrites(backbone, [rome.fact]).efficacy == 0


def test_memit_changes_ten_facts_at_once(backbone: CausalLMBackbone) -> None:
    memit = configured(MEMIT, "memit")
    facts = read_rewrites(memit.facts)
    assert len(facts) == 10
    edit = memit.fit(backbone)
    found = []
    for placed in (Affine({}), edit, at_random(backbone, edit, 0)):
        with baked(backbone, placed):
            found.append(rate_rewrites(backbone, facts))
    before, after, control = found
    assert after.efficacy >= 0.8
    assert after.paraphrase >= before.paraphrase + 0.3
    assert after.neighbourhood >= before.neighbourhood - 0.15
    assert max(before.efficacy, control.efficacy) <= 0.2


def test_a_function_vector_does_the_task_without_its_examples(backbone: CausalLMBackbone) -> None:
    made = configured(FunctionVector, "function_vector")
    task, edit = Task.load(made.task), made.fit(backbone)
    found = []
    for placed in (Affine({}), edit, at_random(backbone, edit, 0)):
        with baked(backbone, placed):
            found.append(solved(backbone, task, task.heldout, 0)[0])
    before, after, control = found
    assert solved(backbone, task, task.heldout, 10)[0] >= 0.9
    assert max(before, control) <= 0.1
    assert after >= 0.4
