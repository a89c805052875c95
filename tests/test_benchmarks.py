"""What the benchmarks compare is what they say; none of them asserts a time."""

from pathlib import Path

import pytest
import torch

from benchmarks.results import Results
from benchmarks.speed_effect import PROCEDURES, doubled_student
from benchmarks.speed_language import AskedAnew
from benchmarks.timing import Evaluations
from sliders.attach import Adapter
from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.concept import Concept
from sliders.losses.erasure import LogProbabilityLoss
from sliders.training.data import ConceptData
from sliders.training.responses import Responses
from sliders.training.states import StateSource
from sliders.training.teacher import Teacher
from tests import tiny, tiny_lm
from tests.training import runs
from tests.training.conftest import base  # noqa: F401  (the fixture)


def test_a_published_step_costs_what_the_published_code_s_costs(base: Path) -> None:  # noqa: F811
    """Rollout of k steps and the student's call, all doubled, and three calls of the teacher: 2 k + 8 evaluations."""
    backbone, how = runs.loaded(base), PROCEDURES["published"]
    data = ConceptData(runs.RICH, preserve_batch_size=1, **how.data)
    costs = set()
    with Adapter(backbone, backbone.select_targets(["xattn"]), 2, 2.0) as adapter:
        count, source, teacher = Evaluations(backbone), how.states(), Teacher(backbone, runs.RICH, adapter)
        for step in range(3):
            batch = data.step_batch(step)
            batch = runs.batch(batch.seeds[:1], step=step)
            before = count.rows
            with doubled_student(backbone):
                lesson = source.draw(teacher, adapter, batch)
                with adapter.dial(torch.ones(1)):
                    said = backbone.predict(lesson.state, teacher.targets(lesson.question))
            depth, rest = divmod(999 - int(lesson.state["timestep"]), 20)
            assert rest == 0
            assert 1 <= depth < 50
            assert count.rows - before == 2 * depth + 6 + 2
            costs.add(depth)
            with torch.no_grad(), adapter.dial(torch.ones(1)):
                plain = backbone.predict(lesson.state, teacher.targets(lesson.question))
            torch.testing.assert_close(said.detach(), plain, rtol=1e-4, atol=1e-5)
            fresh, _ = teacher.answer(lesson.state, lesson.question)
            torch.testing.assert_close(lesson.base, fresh, rtol=1e-4, atol=1e-5)
            assert lesson.direction.any()
        count.remove()
    assert len(costs) > 1


def test_asking_in_every_step_teaches_the_same(tmp_path: Path) -> None:
    """So that cached answers reach the same effect in as many steps."""
    folder = tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path / "lm")
    concept = Concept("mood", "you are a person", ["be happy"], ["be sad"], ["a dog", "day"], modality="text")
    factors, costs = [], []
    for wrap in (lambda states: states, AskedAnew):
        backbone = CausalLMBackbone(str(folder), support=8, prompt_tokens=40)
        source: StateSource = wrap(Responses(sampled=6, tokens=5))
        loss = LogProbabilityLoss(1.0)
        model = runs.module(Path(), source, 1e-3, ["full"], backbone, loss=loss)
        factors.append(runs.fit(model, tmp_path, 4, concept=concept, data={"magnitude": (0.3, 1.0)}))
        assert model.teacher is not None
        costs.append(model.teacher.evaluations)
    assert costs[1] == costs[0] + 4 * 2 * 3
    for name, factor in factors[0].items():
        torch.testing.assert_close(factors[1][name], factor, rtol=1e-3, atol=1e-5)
    assert any(factor.any() for name, factor in factors[0].items() if name.endswith(".B"))


def test_a_figure_is_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "figures.json"
    assert Results(file).get("a", lambda: 1) == 1
    assert Results(file).get("a", lambda: pytest.fail("it is measured again")) == 1
    assert [path.name for path in file.parent.iterdir()] == ["figures.json"]
