"""What the frozen model is asked, and what it answers."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.batch import TensorBatch, join, take
from sliders.concept import Concept
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.teacher.training_free import oracle
from tests.training import runs

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def state(shared: DiffusionBackbone) -> TensorBatch:
    """Six states of different noise and time."""
    paths = [shared.trajectory(lambda x: 0.3 * x["latents"], shared.start([s]), 6, [s]) for s in range(6)]
    return join([list(path)[s] for s, path in enumerate(paths)])


@pytest.fixture
def teacher(shared: DiffusionBackbone) -> Teacher:
    """Of a concept with lists, contexts and prompts to preserve."""
    return Teacher(shared, runs.RICH)


@torch.no_grad()
def dense(model: DiffusionBackbone, prompts: list[str], state: TensorBatch, row: int) -> Tensor:
    """The mean prediction of prompts at one state, one prompt after the other."""
    one = take(state, torch.tensor([row]))
    return torch.stack([model.predict(one, model.encode([prompt]))[0] for prompt in prompts]).mean(0)


def test_questions_are_the_concept_in_every_context_and_what_to_preserve(teacher: Teacher) -> None:
    said = [
        (
            teacher.prompts[q.target],
            [teacher.prompts[p] for p in q.positives],
            [teacher.prompts[n] for n in q.negatives],
        )
        for q in teacher.questions
    ]
    assert said[:2] == runs.RICH.in_contexts()
    assert isinstance(runs.RICH.preserve, list)
    assert said[2:] == [(prompt, [], []) for prompt in runs.RICH.preserve]
    assert teacher.moved.tolist() == [0, 1]
    assert teacher.kept.tolist() == [2, 3, 4]


def test_every_prompt_is_encoded_once(teacher: Teacher) -> None:
    assert len(set(teacher.prompts)) == len(teacher.prompts)
    assert len(teacher.conditioning["prompt_embeds"]) == len(teacher.prompts)


def test_answer_is_the_average_over_prompts(shared: DiffusionBackbone, teacher: Teacher, state: TensorBatch) -> None:
    """Against an oracle that asks about one prompt at a time."""
    questions = torch.tensor([0, 3, 1, 1, 2, 0])
    base, direction = teacher.answer(state, questions)
    contexts = runs.RICH.in_contexts()
    kept = runs.RICH.preserve
    assert isinstance(kept, list)
    for row, q in enumerate(questions.tolist()):
        target, positives, negatives = contexts[q] if q < 2 else (kept[q - 2], [], [])
        close(base[row], dense(shared, [target], state, row))
        if q < 2:
            wanted = dense(shared, positives, state, row) - dense(shared, negatives, state, row)
            close(direction[row], wanted)
            assert wanted.norm() > 1e-2
        else:
            assert torch.equal(direction[row], torch.zeros_like(direction[row]))


def test_swapped_ends_have_the_opposite_direction(shared: DiffusionBackbone, state: TensorBatch) -> None:
    swapped = Concept("swapped", runs.RICH.target, runs.RICH.negatives, runs.RICH.positives)
    straight = Concept("straight", runs.RICH.target, runs.RICH.positives, runs.RICH.negatives)
    questions = torch.zeros(6, dtype=torch.long)
    answers = [Teacher(shared, concept).answer(state, questions) for concept in (straight, swapped)]
    close(answers[0][0], answers[1][0])
    close(answers[0][1], -answers[1][1])


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunks_do_not_matter(teacher: Teacher, state: TensorBatch, chunk: int) -> None:
    questions = torch.tensor([0, 3, 1, 1, 2, 0])
    for one, other in zip(teacher.answer(state, questions, 7), teacher.answer(state, questions, chunk), strict=True):
        close(one, other)


@pytest.mark.parametrize("questions", [[0], [2], [0, 1, 2, 4, 1], [3, 3]])
def test_a_moved_row_costs_its_prompts_and_a_kept_one_costs_1(
    shared: DiffusionBackbone, state: TensorBatch, questions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(shared, runs.RICH)
    counts = runs.count_rows(shared, monkeypatch)
    teacher.answer(take(state, torch.arange(len(questions))), torch.tensor(questions), chunk=4)
    cost = sum(1 + 3 + 2 if q < 2 else 1 for q in questions)
    assert sum(counts) == teacher.evaluations == cost
    assert max(counts) <= 4


def test_answers_have_no_gradient_and_ignore_the_slider(
    shared: DiffusionBackbone, state: TensorBatch, adapter: Adapter
) -> None:
    questions = torch.tensor([0, 1, 2, 3, 4, 0])
    adapter.remove()
    wanted = Teacher(shared, runs.RICH).answer(state, questions)
    with Adapter(shared, shared.select_targets(["full", "text-encoder"]), 2, 2.0) as other:
        runs.randomize(other)
        given = Teacher(shared, runs.RICH, other).answer(state, questions)
    for one, two in zip(wanted, given, strict=True):
        assert torch.equal(one, two)
        assert not two.requires_grad


def test_targets_are_looked_up(shared: DiffusionBackbone, teacher: Teacher) -> None:
    questions = torch.tensor([1, 4, 0])
    wanted = shared.encode(["a person with a dog", "a person with a dog", "a person"])
    close(teacher.targets(questions)["prompt_embeds"], wanted["prompt_embeds"])
    assert not teacher.targets(questions)["prompt_embeds"].requires_grad


def test_targets_are_encoded_anew_where_the_slider_changes_them(shared: DiffusionBackbone) -> None:
    """At the dial that is set, and with a gradient."""
    questions = torch.tensor([0, 0, 3])
    with Adapter(shared, shared.select_targets(["text-encoder"]), 2, 2.0) as adapter:
        runs.randomize(adapter)
        teacher = Teacher(shared, runs.RICH, adapter)
        looked_up = Teacher(shared, runs.RICH).targets(questions)["prompt_embeds"]
        with adapter.dial(torch.tensor([1.0, 0.0, -1.0])):
            given = teacher.targets(questions)["prompt_embeds"]
    assert given.requires_grad
    moved = (given - looked_up).abs().amax((1, 2))
    assert moved[0] > 1e-3
    assert moved[1] < 1e-5
    assert moved[2] > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_follow_is_guidance_towards_the_target(
    shared: DiffusionBackbone, teacher: Teacher, state: TensorBatch, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = torch.tensor([0, 1, 2, 3, 4, 0])
    with torch.no_grad():
        prompt = shared.predict(state, teacher.targets(questions))
        empty = shared.predict(state, shared.encode([""] * 6))
        counts = runs.count_rows(shared, monkeypatch)
        given = teacher.follow(questions, guidance)(state)
    close(given, empty + guidance * (prompt - empty))
    assert sum(counts) == (6 if guidance == 1 else 12)


class TestOracle:
    """Sampling along the directions themselves."""

    sad = Concept("dog", "a person", ["a dog"], ["a person with a hat", "a sad person"])

    @torch.no_grad()
    def given(self, model: DiffusionBackbone, state: TensorBatch, parts: list[tuple[Concept, Tensor]]) -> Tensor:
        """Its prediction."""
        prompt, empty = model.encode(["a person with a hat"] * 6), model.encode([""] * 6)
        return oracle(model, parts, prompt, empty, 2.0)(state)

    def test_at_amount_0_is_the_base(self, shared: DiffusionBackbone, state: TensorBatch) -> None:
        at_0 = self.given(shared, state, [(runs.HAPPY, torch.zeros(6))])
        assert torch.equal(at_0, self.given(shared, state, []))

    def test_adds_every_row_s_amount_of_the_direction(self, shared: DiffusionBackbone, state: TensorBatch) -> None:
        amounts = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5, -0.5])
        moved = self.given(shared, state, [(runs.HAPPY, amounts)]) - self.given(shared, state, [])
        for row in range(6):
            direction = dense(shared, ["a happy person"], state, row) - dense(shared, ["a sad person"], state, row)
            close(moved[row], amounts[row] * direction)

    def test_of_two_concepts_is_their_sum(self, shared: DiffusionBackbone, state: TensorBatch) -> None:
        one, two = torch.full((6,), 1.5), torch.linspace(-1, 1, 6)
        base = self.given(shared, state, [])
        apart = sum(self.given(shared, state, [part]) - base for part in ((runs.HAPPY, one), (self.sad, two)))
        together = self.given(shared, state, [(runs.HAPPY, one), (self.sad, two)]) - base
        close(together, apart)
