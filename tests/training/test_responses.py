"""Where a language model's states come from, and that the one training loop learns from them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.sampling import PromptSteering
from sliders.batch import TensorBatch, take
from sliders.concept import Concept, Wording
from sliders.errors import SliderError
from sliders.formats import peft
from sliders.formats.metadata import concept_of
from sliders.losses.erasure import AbstractLoss, ErasureLoss, HiddenStateLoss, LogProbabilityLoss
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.callbacks import SliderWriter
from sliders.training.states import AnsweredStates, Pool, Responses, Rollout
from tests import tiny, tiny_lm
from tests.training import runs

MOOD = Concept(
    "mood",
    "you are a person",
    ["you are a happy person", "be happy"],
    ["you are a sad person"],
    contexts=["how was your day", "tell me about the dog", "day"],
    modality="text",
)
KEEPING = Concept(
    "mood", MOOD.target, MOOD.positives, MOOD.negatives, MOOD.contexts, ["a dog", "you are a hat\n\nthe hat"],
    modality="text",
)  # fmt: skip
SEEDS = [11, 12, 13, 14, 15, 16]
PRESERVED = [False, True, False, False, True, True]
LINES = ["the day was good and long", "a hat", "it was a sad day for the dog with a hat and it was long"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with a chat template."""
    return tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("lm") / "llama")


def loaded(folder: Path, **options: Any) -> CausalLMBackbone:
    """The model, for a training or a test of its own."""
    model = CausalLMBackbone(str(folder), **{"support": 8, "prompt_tokens": 40, **options})
    model.load()
    return model


@pytest.fixture(scope="module")
def lm(folder: Path) -> CausalLMBackbone:
    """It, for tests that leave it as it was."""
    return loaded(folder)


@pytest.fixture(scope="module")
def hidden(folder: Path) -> CausalLMBackbone:
    """It, predicting hidden states."""
    return loaded(folder, hidden_layers=[1, 2])


@contextmanager
def adapted(model: AbstractBackbone) -> Iterator[Adapter]:
    """With an adapter that does something."""
    with Adapter(model, model.select_targets(["attention"]), 2, 2.0) as made:
        runs.randomize(made, size=0.6)
        yield made


@pytest.fixture
def speaking(lm: CausalLMBackbone) -> Iterator[Adapter]:
    """Its adapter."""
    with adapted(lm) as made:
        yield made


@pytest.fixture
def teacher(lm: CausalLMBackbone, speaking: Adapter) -> Teacher:
    """Of a concept with prompts to preserve."""
    return Teacher(lm, KEEPING, speaking)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Responses in a file."""
    (tmp_path / "lines.txt").write_text("# said before\n" + "\n\n".join(LINES) + "\n")
    return tmp_path / "lines.txt"


Making = Callable[[Path], Responses]
SOURCES: dict[str, Making] = {
    "sampled": lambda file: Responses(sampled=8, tokens=6, refresh=3, chunk=3),
    "slider's own": lambda file: Responses(sampled=6, tokens=6, voices=["slider", "negative"], dial=2.0, refresh=3),
    "file": lambda file: Responses(sampled=0, tokens=9, file=file, refresh=3),
    "both": lambda file: Responses(sampled=5, tokens=9, file=file, refresh=3, chunk=4),
}


def counted(ask: Callable[..., Tensor], counts: list[int]) -> Callable[..., Tensor]:
    """The same, which also notes how many rows it was asked about."""

    def asking(state: TensorBatch, *rest: Any) -> Tensor:
        counts.append(len(state["tokens"]))
        return ask(state, *rest)

    return asking


def filled(source: Responses, teacher: Teacher, adapter: Adapter, keep: bool = True, step: int = 0) -> AnsweredStates:
    """Everything that the source holds after a step."""
    source.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED if keep else None, step))
    assert source._contents is not None
    return source._contents.answered


def same(one: AnsweredStates, other: AnsweredStates) -> bool:
    """Bit by bit."""
    tensors = [[x.question, x.base, x.direction, x.weight, *x.state.values()] for x in (one, other)]
    return all(
        a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(*tensors, strict=True)
    )


def rows_said(states: TensorBatch) -> list[tuple[int, ...]]:
    """The tokens of each response."""
    return [tuple(ids[keep].tolist()) for ids, keep in zip(states["tokens"], states["mask"], strict=True)]


@pytest.mark.parametrize("kind", SOURCES)
class TestEverySource:
    """What holds wherever the responses come from."""

    def test_lesson_is_the_teacher_s_answer_at_its_own_state(
        self, kind: str, teacher: Teacher, speaking: Adapter, lm: CausalLMBackbone, lines: Path
    ) -> None:
        """By a teacher that has seen nothing else, one row at a time; the support is the base's under the target."""
        answered = SOURCES[kind](lines).draw(teacher, speaking, runs.batch(SEEDS, PRESERVED))
        fresh = Teacher(lm, KEEPING)
        for row in range(len(SEEDS)):
            one = torch.tensor([row])
            state, question = take(answered.state, one), answered.question[one]
            base, direction = fresh.answer(state, question)
            torch.testing.assert_close(answered.base[one], base, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(answered.direction[one], direction, rtol=1e-4, atol=1e-4)
            support = lm.complete(state, fresh.targets(question))["support"]
            assert torch.equal(support[state["mask"]], state["support"][state["mask"]])
            assert bool(direction.any()) != PRESERVED[row]
        assert answered.weight is not None
        assert torch.equal(answered.weight, answered.state["mask"].float()), "padding does not count"
        assert torch.equal(torch.isin(answered.question, teacher.kept), torch.tensor(PRESERVED))

    def test_the_same_run_sees_the_same_lessons(
        self, kind: str, teacher: Teacher, speaking: Adapter, lines: Path
    ) -> None:
        one, again, other = (SOURCES[kind](lines) for _ in range(3))
        for step in (0, 3):
            items = runs.batch([s + step for s in SEEDS], PRESERVED, step)
            torch.manual_seed(step)
            first = one.draw(teacher, speaking, items)
            torch.manual_seed(-step)
            assert same(first, again.draw(teacher, speaking, items))
        pools = []
        for source, seed in ((one, 0), (other, 1)):
            source.draw(teacher, speaking, runs.batch(SEEDS, PRESERVED, 6, seed))
            assert source._contents is not None
            pools.append(source._contents.answered)
        assert not same(*pools), "the control: another run's pool is another one"

    def test_every_evaluation_is_counted(
        self, kind: str, lm: CausalLMBackbone, hidden: CausalLMBackbone, lines: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One for each row whose prediction or support the frozen model is asked for, and none besides."""
        for model in (lm, hidden):
            counts: list[int] = []
            for name in ("log_probabilities", "hidden"):
                monkeypatch.setattr(model, name, counted(getattr(model, name), counts))
            with adapted(model) as adapter:
                asked, source = Teacher(model, KEEPING, adapter), SOURCES[kind](lines)
                for step in (0, 1, 3):
                    source.draw(asked, adapter, runs.batch(SEEDS, PRESERVED, step))
                    assert sum(counts) == asked.evaluations > 0

    def test_drawing_leaves_the_slider_as_it_is(
        self, kind: str, teacher: Teacher, speaking: Adapter, lm: CausalLMBackbone, lines: Path
    ) -> None:
        """Off, unchanged and without gradients."""
        before, state, prompt = speaking.state(), lm.responses(["happy"], 4), lm.encode(["day"])
        with torch.no_grad():
            base = lm.predict(state, prompt)
            answered = SOURCES[kind](lines).draw(teacher, speaking, runs.batch(SEEDS, PRESERVED))
            assert torch.equal(lm.predict(state, prompt), base)
        assert runs.equal(before, speaking.state())
        assert not any(t.requires_grad for t in (answered.base, answered.direction))

    def test_kept_until_it_is_refreshed(self, kind: str, teacher: Teacher, speaking: Adapter, lines: Path) -> None:
        source = SOURCES[kind](lines)
        first = filled(source, teacher, speaking)
        assert filled(source, teacher, speaking, step=2) is first
        second, third = (filled(source, teacher, speaking, step=step) for step in (3, 7))
        assert second is not first
        assert not same(second, third) or not same(first, second), "of a file the messages differ, if not by chance"
        source.refresh = None
        assert filled(source, teacher, speaking, step=400) is third

    def test_goes_on_as_it_was_after_a_resume(
        self, kind: str, teacher: Teacher, speaking: Adapter, lines: Path
    ) -> None:
        """With the weights that it was filled with, though training has moved on since."""
        first, second = SOURCES[kind](lines), SOURCES[kind](lines)
        filled(first, teacher, speaking, step=4)
        runs.randomize(speaking, seed=8, size=0.6)
        now = speaking.state()
        second.load_state_dict(first.state_dict())
        fresh = SOURCES[kind](lines)
        assert not same(filled(fresh, teacher, speaking, step=5), filled(second, teacher, speaking, step=5))
        for step in (6, 7):
            items = runs.batch([s + step for s in SEEDS], PRESERVED, step)
            assert same(first.draw(teacher, speaking, items), second.draw(teacher, speaking, items))
        assert runs.equal(now, speaking.state())


class TestVoices:
    """Who says what is sampled; at temperature 0 a response follows from its prompt."""

    def check(self, source: Responses, teacher: Teacher, adapter: Adapter, keep: bool) -> list[set[str]]:
        """Of each row of the pool, the voices that would have said it."""
        lm = teacher.backbone
        assert isinstance(lm, CausalLMBackbone)
        answered, found = filled(source, teacher, adapter, keep), []
        for row, said in enumerate(rows_said(answered.state)):
            question = teacher.questions[int(answered.question[row])]
            prompts = {"target": [question.target], "positive": question.positives, "negative": question.negatives}
            fits = set()
            for voice, rows in prompts.items():
                for k in rows:
                    answer = lm.respond(take(teacher.conditioning, torch.tensor([k])), [0], source.tokens, 0.0)
                    fits |= {voice} if rows_said(answer)[0] == said else set()
            found.append(fits)
        return found

    def test_they_speak_in_turn(self, teacher: Teacher, speaking: Adapter) -> None:
        order = ["positive", "target", "negative"]
        source = Responses(sampled=6, tokens=8, voices=order, temperature=0.0)  # pyright: ignore[reportArgumentType]
        found = self.check(source, teacher, speaking, keep=False)
        assert all(order[k % 3] in fits for k, fits in enumerate(found)), found
        assert any(order[(k + 1) % 3] not in fits for k, fits in enumerate(found)), "the control: they differ"

    def test_every_second_is_to_a_prompt_to_preserve(self, teacher: Teacher, speaking: Adapter) -> None:
        """Said by the target; the others still go through all voices."""
        order = ["positive", "negative"]
        source = Responses(sampled=6, tokens=8, voices=order, temperature=0.0)  # pyright: ignore[reportArgumentType]
        found = self.check(source, teacher, speaking, keep=True)
        assert source._contents is not None
        assert source._contents.preserved.tolist() == [False, True] * 3
        assert all("target" in fits for fits in found[1::2])
        assert all(order[k % 2] in fits for k, fits in enumerate(found[0::2])), found

    def test_without_rows_to_preserve_none_asks(self, teacher: Teacher, speaking: Adapter) -> None:
        answered = filled(Responses(sampled=40, tokens=2), teacher, speaking, keep=False)
        assert set(answered.question.tolist()) == set(teacher.moved.tolist())

    def test_the_slider_s_own_are_said_with_it_on(self, lm: CausalLMBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
        """At its own dial for each; the other voices speak with it off."""
        dials: list[Tensor] = []
        with adapted(lm) as adapter:
            teacher, real = Teacher(lm, MOOD, adapter), adapter.dial
            monkeypatch.setattr(adapter, "dial", lambda d: (dials.append(d), real(d))[1])
            source = Responses(sampled=10, tokens=12, voices=["slider", "target"], dial=1.5, temperature=0.0)
            answered = filled(source, teacher, adapter, keep=False)
            dial = dials[0]
            assert dial[1::2].tolist() == [0.0] * 5
            assert len(set(dial[0::2].tolist())) == 5
            assert dial.abs().max() <= 1.5
            assert dial.min() < 0 < dial.max()
            said = rows_said(answered.state)
            prompt = teacher.targets(answered.question)
            with real(dial):
                assert rows_said(lm.respond(prompt, [0] * 10, 12, 0.0)) == said
            without = rows_said(lm.respond(prompt, [0] * 10, 12, 0.0))
            assert without[1::2] == said[1::2]
            assert without[0::2] != said[0::2]

    def test_the_formula_s_own(self, lm: CausalLMBackbone, speaking: Adapter) -> None:
        """With the slider off, the others' turns in between as they are; an amount of 0 is the target's own."""
        teacher = Teacher(lm, MOOD, speaking)
        states: dict[float, list[tuple[int, ...]]] = {}
        for amount in (0.0, 4.0):
            source = Responses(sampled=8, tokens=8, voices=["steered", "target"], steer_by=amount, temperature=0.0)
            answered = filled(source, teacher, speaking, keep=False)
            states[amount] = rows_said(answered.state)
            plain = rows_said(lm.respond(teacher.targets(answered.question), [0] * 8, 8, 0.0))
            assert states[amount][1::2] == plain[1::2]
            asked = [teacher.questions[q] for q in answered.question[0::2].tolist()]
            target, *ends = (
                take(teacher.conditioning, torch.tensor(column))
                for column in zip(*[(q.target, *q.positives, *q.negatives) for q in asked], strict=True)
            )
            alone = PromptSteering(ends[:2], ends[2:], torch.full((4,), amount))
            assert rows_said(lm.respond(target, [0] * 4, 8, 0.0, alone)) == states[amount][0::2]
            assert (states[amount][0::2] == plain[0::2]) == (amount == 0)

    def test_temperature_and_length(self, teacher: Teacher, speaking: Adapter) -> None:
        for tokens in (1, 7):
            answered = filled(Responses(sampled=4, tokens=tokens), teacher, speaking)
            assert answered.state["tokens"].shape == (4, tokens)
        cold = filled(Responses(sampled=6, tokens=7, temperature=0.0), teacher, speaking)
        hot = filled(Responses(sampled=6, tokens=7, temperature=3.0), teacher, speaking)
        assert torch.equal(cold.question, hot.question)
        assert rows_said(cold.state) != rows_said(hot.state)


class TestFile:
    """Responses that somebody else has given."""

    def test_its_lines_are_the_states(
        self, teacher: Teacher, speaking: Adapter, lm: CausalLMBackbone, lines: Path
    ) -> None:
        """Cut to the room there is, and without an end: a line need not be the whole response."""
        answered = filled(Responses(sampled=0, tokens=9, file=lines), teacher, speaking)
        for said, line in zip(rows_said(answered.state), LINES, strict=True):
            whole = lm.tokenizer(line, add_special_tokens=False).input_ids
            assert list(said) == whole[:9]
            assert lm.tokenizer.eos_token_id not in said
        assert {len(said) < 9 for said in rows_said(answered.state)} == {True, False}

    def test_they_come_after_the_sampled_ones(
        self, teacher: Teacher, speaking: Adapter, lm: CausalLMBackbone, lines: Path
    ) -> None:
        answered = filled(Responses(sampled=5, tokens=30, file=lines), teacher, speaking)
        assert [lm.text(take(answered.state, torch.tensor([5 + k])))[0] for k in range(3)] == LINES
        alone = filled(Responses(sampled=5, tokens=30), teacher, speaking)
        assert torch.equal(answered.state["tokens"][:5], alone.state["tokens"])

    def test_a_missing_or_empty_one_is_named(self, teacher: Teacher, speaking: Adapter, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("# nothing\n\n")
        for name in ("absent.txt", "empty.txt"):
            with pytest.raises(SliderError, match=name):
                filled(Responses(sampled=0, file=tmp_path / name), teacher, speaking)


class TestErrors:
    """Each names the key."""

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"sampled": -1}, "sampled"),
            ({"sampled": 0}, "file"),
            ({"tokens": 0}, "tokens"),
            ({"refresh": 0}, "refresh"),
            ({"voices": []}, "voices"),
            ({"voices": ["target", "postive"]}, "postive"),
        ],
        ids=str,
    )
    def test_what_cannot_be(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(SliderError, match=words):
            Responses(**wrong)

    def test_a_pool_without_room_for_what_is_preserved(
        self, teacher: Teacher, speaking: Adapter, tmp_path: Path
    ) -> None:
        (tmp_path / "one.txt").write_text("a hat\n")
        for source in (Responses(sampled=1), Responses(sampled=1, file=tmp_path / "one.txt", tokens=4)):
            with pytest.raises(SliderError, match=r"Responses.*preserve"):
                source.draw(teacher, speaking, runs.batch(SEEDS, PRESERVED))
        answered = Responses(sampled=2, tokens=4).draw(teacher, speaking, runs.batch(SEEDS, PRESERVED))
        assert torch.equal(torch.isin(answered.question, teacher.kept), torch.tensor(PRESERVED))

    def test_nothing_to_preserve(self, lm: CausalLMBackbone, speaking: Adapter) -> None:
        with pytest.raises(SliderError, match="preserve"):
            filled(Responses(sampled=4, tokens=4), Teacher(lm, MOOD, speaking), speaking)

    def test_a_model_that_says_nothing(self, shared: AbstractBackbone, adapter: Adapter) -> None:
        with pytest.raises(
            SliderError, match=r"Responses, which is made for a CausalLMBackbone, but .* a UNetBackbone"
        ):
            Responses().draw(Teacher(shared, runs.HAPPY, adapter), adapter, runs.batch(SEEDS))

    @pytest.mark.parametrize("source", [Pool(trajectories=2, steps=2), Rollout(steps=2)], ids=lambda s: str(type(s)))
    def test_a_model_that_does_not_denoise(self, source: Any, teacher: Teacher, speaking: Adapter) -> None:
        with pytest.raises(SliderError, match=r"made for a DiffusionBackbone, but .* a CausalLMBackbone"):
            source.draw(teacher, speaking, runs.batch(SEEDS))

    @pytest.mark.parametrize(
        ("loss", "options"),
        [(ErasureLoss(), {}), (HiddenStateLoss(), {}), (LogProbabilityLoss(), {"hidden_layers": [1]})],
        ids=lambda x: type(x).__name__ if isinstance(x, AbstractLoss) else "",
    )
    def test_a_loss_for_another_space(self, folder: Path, loss: AbstractLoss, options: dict[str, Any]) -> None:
        model = CausalLMBackbone(str(folder), **options)
        with pytest.raises(SliderError) as caught:
            runs.module(folder, Responses(), backbone=model, loss=loss)
        assert all(word in str(caught.value) for word in (type(loss).__name__, loss.space, model.space))

    def test_words_of_the_other_kind(self, folder: Path, base: Path, tmp_path: Path) -> None:
        """Known before the weights are read."""
        speaker = CausalLMBackbone(str(folder))
        with pytest.raises(SliderError, match=r"'happy' has no words for a model of text"):
            runs.fit(words_module(speaker), tmp_path, 1, concept=runs.HAPPY)
        assert speaker.lm is None
        with pytest.raises(SliderError, match=r"'mood' has no words for a model of image"):
            runs.fit(runs.module(base), tmp_path, 1, concept=MOOD)


def words_module(backbone: CausalLMBackbone, states: Responses | None = None, **changes: Any) -> Any:
    """A training of the tiny language model."""
    loss = HiddenStateLoss(1.0) if backbone.hidden_layers else LogProbabilityLoss(1.0)
    return runs.module(
        Path(),
        states or Responses(sampled=12, tokens=6, refresh=20),
        backbone=backbone,
        **{"loss": loss, "targets": ["full"], "rank": 4, "lr": 5e-3, **changes},
    )


def mean(values: Sequence[float]) -> float:
    """Of some."""
    return sum(values) / len(values)


@pytest.mark.parametrize("space", ["words", "hidden"])
def test_a_language_model_learns(space: str, folder: Path, tmp_path: Path) -> None:
    """And a slider comes out that turns it in the client's layout."""
    backbone = loaded(folder, hidden_layers=[2, 3] if space == "hidden" else None)
    model, curve = words_module(backbone), runs.Curve()
    data = {"batch_size": 6, "preserve_batch_size": 2, "magnitude": (0.3, 1.0)}
    runs.fit(model, tmp_path, 40, concept=KEEPING, data=data, callbacks=[curve, SliderWriter(every=100)])
    effect, loss = curve.values["effect"], curve.values["loss"]
    assert abs(effect[0]) < 1e-5, "a slider starts as the identity"
    assert mean(effect[-8:]) > 0.5
    assert mean(loss[-8:]) < 0.6 * mean(loss[:8])
    written = peft.load(tmp_path / "mood")
    assert concept_of(written) == KEEPING
    assert written.metadata["sliders.base_fingerprint"] == backbone.fingerprint()
    assert set(written.update) == set(loaded(folder, hidden_layers=backbone.hidden_layers).select_targets(["full"]))
    model.detach_slider()
    assert runs.equal(backbone.state_dict(), loaded(folder).state_dict())


def test_a_run_that_was_interrupted_ends_where_one_that_was_not_ends(folder: Path, tmp_path: Path) -> None:
    """Bit by bit, from between two fillings and from just before one; states are the slider's own, too."""

    def module() -> Any:
        return words_module(loaded(folder), Responses(sampled=6, tokens=5, voices=["slider", "positive"], refresh=2))

    how: dict[str, Any] = {"concept": KEEPING, "data": {"preserve_batch_size": 1}}
    whole = runs.fit(module(), tmp_path, 5, every=1, **how)
    for step in (2, 3):
        torch.manual_seed(step)
        again = runs.fit(module(), tmp_path / "again", 5, resume=tmp_path / f"{step}.ckpt", **how)
        assert runs.equal(again, whole), step
    checkpoint = torch.load(tmp_path / "3.ckpt", weights_only=True)
    checkpoint["states"] = {}
    torch.save(checkpoint, tmp_path / "part.ckpt")
    assert not runs.equal(runs.fit(module(), tmp_path / "again", 5, resume=tmp_path / "part.ckpt", **how), whole)


def test_one_concept_trains_on_pictures_and_on_words(base: Path, folder: Path, tmp_path: Path) -> None:
    """Its image phrases on the one, its text phrases on the other; each slider knows both."""
    spoken = Wording(MOOD.positives, MOOD.negatives, MOOD.target, MOOD.contexts)
    both = Concept("happy", "a person", ["a happy person"], ["a sad person"], text=spoken)
    asked: list[list[str]] = []
    for model in (runs.module(base), words_module(loaded(folder))):
        curve = runs.Curve()
        runs.fit(model, tmp_path, 12, concept=both, callbacks=[curve], data={"magnitude": (0.3, 1.0)})
        assert model.teacher is not None
        asked.append(model.teacher.prompts)
        assert mean(curve.values["effect"][-4:]) > 0.1
        assert concept_of(model.slider()) == both
    assert "a happy person" in asked[0]
    assert "you are a happy person\n\nday" in asked[1]
    assert not set(asked[0]) & set(asked[1]) - {""}
