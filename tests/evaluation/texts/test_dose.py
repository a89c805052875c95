"""What a dial does to a language model, against the same numbers worked out without the evaluation."""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.sampling import PromptSteering
from sliders.concept import Concept, Measure
from sliders.console import say
from sliders.errors import SliderError
from sliders.evaluation.texts.dose import TextDose, evaluate_text, heldout_messages, log_odds, on_neutral_text
from sliders.evaluation.texts.report import write_text_report
from sliders.evaluation.texts.sampling import TextSampling, say_over_dial, say_with_oracle
from sliders.evaluation.texts.scores import SCORES, words
from sliders.runtime.attach import attach
from sliders.runtime.dials import DialContext
from tests import tiny, tiny_lm
from tests.evaluation.conftest import random_slider

DIALS = [-1.0, 0.0, 2.0]
MESSAGES = ["how was your day", "tell me about the dog", "day", "a hat"]
NEUTRAL = ["the day was good and long", "a dog with a hat", "it was a sad day for the dog and it was long"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    """A tiny language model; every test leaves it as it was."""
    folder = tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("lm") / "llama")
    model = CausalLMBackbone(str(folder), prompt_tokens=48)
    model.load()
    return model


@pytest.fixture(scope="module")
def moving(lm: CausalLMBackbone) -> Slider:
    """A slider that changes what is said."""
    return random_slider(lm, "full")


@pytest.fixture(scope="module")
def concept(tmp_path_factory: pytest.TempPathFactory) -> Concept:
    """One that is measured by its length."""
    prompts = tmp_path_factory.mktemp("prompts") / "heldout.txt"
    prompts.write_text("\n".join(MESSAGES))
    return Concept(
        "mood",
        "you are a person",
        ["you are a happy person", "be happy"],
        ["you are a sad person"],
        modality="text",
        measure=Measure("length", prompts),
    )


@pytest.fixture(scope="module")
def how(tmp_path_factory: pytest.TempPathFactory) -> TextSampling:
    """Short responses."""
    neutral = tmp_path_factory.mktemp("neutral") / "neutral.txt"
    neutral.write_text("\n".join(NEUTRAL))
    return TextSampling(tokens=7, batch=3, neutral=neutral)


@contextmanager
def turning(lm: CausalLMBackbone, slider: Slider) -> Iterator[DialContext]:
    """A slider's dial."""
    with attach(lm, [slider]) as dials:
        yield lambda values: dials.turned({slider.name: values})


@pytest.fixture(scope="module")
def dose(lm: CausalLMBackbone, moving: Slider, concept: Concept, how: TextSampling) -> TextDose:
    """What is looked at from all sides."""
    with turning(lm, moving) as turn:
        return evaluate_text(lm, turn, concept, DIALS, 4, how)


@torch.no_grad()
def neutral_log_probabilities(lm: CausalLMBackbone) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each neutral text, its tokens and all log-probabilities at their places, one text at a time."""
    found = []
    for text in NEUTRAL:
        tokens = torch.tensor(lm.tokenizer(text, add_special_tokens=False).input_ids)
        logits = lm.lm(torch.cat([torch.tensor([lm.tokenizer.bos_token_id]), tokens])[None]).logits[0, :-1]
        found.append((tokens, logits.log_softmax(-1)))
    return found


def test_dial_0_is_the_base(lm: CausalLMBackbone, dose: TextDose, concept: Concept, how: TextSampling) -> None:
    middle = DIALS.index(0)
    assert dose.divergence[middle] == 0
    own = [p.gather(1, tokens[:, None]) for tokens, p in neutral_log_probabilities(lm)]
    assert dose.perplexity[middle] == pytest.approx(math.exp(-float(torch.cat(own).mean())), rel=1e-4)
    prompts = lm.encode([f"{concept.target}\n\n{message}" for message in MESSAGES])
    said = lm.respond(prompts, range(1000, 1004), how.tokens, how.temperature)
    assert dose.texts[middle] == lm.text(said)


def test_every_dial_is_measured_with_the_slider_there(
    lm: CausalLMBackbone, dose: TextDose, moving: Slider, concept: Concept, how: TextSampling
) -> None:
    base = neutral_log_probabilities(lm)
    prompts = lm.encode([f"{concept.target}\n\n{message}" for message in MESSAGES])
    for k, dial in enumerate(DIALS):
        with attach(lm, [moving], {moving.name: dial}):
            turned = neutral_log_probabilities(lm)
            said = lm.respond(prompts, range(1000, 1004), how.tokens, how.temperature)
        own = torch.cat([p.gather(1, tokens[:, None]) for tokens, p in turned])
        assert dose.perplexity[k] == pytest.approx(math.exp(-float(own.mean())), rel=1e-3)
        lost = torch.cat([(b.exp() * (b - t)).sum(-1) for (_, b), (_, t) in zip(base, turned, strict=True)])
        assert dose.divergence[k] == pytest.approx(float(lost.mean()), rel=1e-3, abs=1e-5)
        assert dose.texts[k] == lm.text(said)
    assert len(set(dose.perplexity)) == len({tuple(said) for said in dose.texts}) == len(DIALS), "the dial matters"
    assert min(dose.divergence[0], dose.divergence[2]) > 0.01


def test_texts_are_read_by_the_concept_s_score(dose: TextDose) -> None:
    counts = torch.tensor([[float(len(words(text))) for text in said] for said in dose.texts])
    assert dose.score == "length"
    assert dose.response == pytest.approx(counts.mean(1).tolist())
    assert dose.error == pytest.approx((counts.std(1) / 2).tolist())
    assert set(dose.others) == set(SCORES) - {"length"}
    assert all(len(values) == len(DIALS) for values in dose.others.values())
    assert -1 <= dose.spearman <= 1
    for values in (dose.distinct, dose.repetition):
        assert len(values) == len(DIALS)
        assert all(0 <= value <= 1 for value in values)


def test_log_odds_by_one_response_at_a_time(
    lm: CausalLMBackbone, dose: TextDose, concept: Concept, how: TextSampling
) -> None:
    prompts = lm.encode([f"{concept.target}\n\n{message}" for message in MESSAGES])
    said = lm.respond(prompts, range(1000, 1004), how.tokens, how.temperature)
    wanted = []
    for k, message in enumerate(MESSAGES):
        state = {name: value[k : k + 1] for name, value in said.items()}
        likelihood = {
            text: float(lm.likelihood(state, lm.encode([f"{text}\n\n{message}"])).detach().sum())
            for text in (*concept.positives, *concept.negatives)
        }
        sides = [sum(likelihood[t] for t in side) / len(side) for side in (concept.positives, concept.negatives)]
        wanted.append((sides[0] - sides[1]) / int(state["mask"].sum()))
    found = log_odds(lm, concept, MESSAGES, said)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert dose.log_odds[DIALS.index(0)] == pytest.approx(sum(wanted) / 4, abs=1e-4)
    swapped = replace(concept, positives=concept.negatives, negatives=concept.positives)
    assert log_odds(lm, swapped, MESSAGES, said).tolist() == pytest.approx([-x for x in wanted], abs=1e-4)
    assert max(abs(x) for x in wanted) > 1e-3


def test_the_batch_s_size_does_not_matter(
    lm: CausalLMBackbone, moving: Slider, dose: TextDose, concept: Concept, how: TextSampling
) -> None:
    prompts = [f"{concept.target}\n\n{message}" for message in MESSAGES]
    with turning(lm, moving) as turn:
        for size in (1, 64):
            states = say_over_dial(lm, turn, prompts, DIALS, replace(how, batch=size))
            assert [lm.text(state) for state in states] == dose.texts
        more = say_over_dial(lm, turn, prompts, DIALS, replace(how, first_seed=1))
    assert [lm.text(state) for state in more] != dose.texts, "the control: other seeds, other texts"


def test_a_long_text_is_cut(lm: CausalLMBackbone, moving: Slider) -> None:
    with turning(lm, moving) as turn:
        whole = on_neutral_text(lm, turn, [0.0], NEUTRAL[:1], tokens=3)
        cut = " ".join(NEUTRAL[0].split()[:9])
        tokens = lm.tokenizer(cut, add_special_tokens=False).input_ids[:3]
        again = on_neutral_text(lm, turn, [0.0], [lm.tokenizer.decode(tokens)], tokens=3)
    assert whole == again


def test_without_a_score_the_log_odds_are_the_response(
    lm: CausalLMBackbone, moving: Slider, concept: Concept, how: TextSampling
) -> None:
    assert concept.measure is not None
    unread = replace(concept, measure=replace(concept.measure, attribute=""))
    with turning(lm, moving) as turn:
        found = evaluate_text(lm, turn, unread, DIALS, 2, how)
    assert found.response == pytest.approx(found.log_odds)
    assert set(found.others) == set(SCORES)
    found.table()
    found.summary()


def test_a_slider_that_does_nothing_has_no_trend(
    lm: CausalLMBackbone, moving: Slider, concept: Concept, how: TextSampling
) -> None:
    still = Slider("still", moving.update * 0.0)
    with turning(lm, still) as turn:
        found = evaluate_text(lm, turn, concept, DIALS, 2, how)
    assert found.spearman == 0
    assert found.divergence == [0.0] * 3
    assert found.texts[0] == found.texts[1] == found.texts[2]


def test_the_oracle_speaks_by_the_formula(lm: CausalLMBackbone, concept: Concept, how: TextSampling) -> None:
    """At amount 0 without temperature it is the base; otherwise it is the formula of each message's own prompts."""
    cold = replace(how, temperature=0.0)
    nothing, some = say_with_oracle(lm, concept, MESSAGES, [0.0, 3.0], cold)

    def asked(instruction: str) -> dict[str, Any]:
        return lm.encode([f"{instruction}\n\n{message}" for message in MESSAGES])

    base = lm.respond(asked(concept.target), [0] * 4, how.tokens, 0.0)
    assert lm.text(nothing) == lm.text(base)
    steering = PromptSteering(
        [asked(p) for p in concept.positives], [asked(n) for n in concept.negatives], torch.full((4,), 3.0)
    )
    assert lm.text(some) == lm.text(lm.respond(asked(concept.target), [0] * 4, how.tokens, 0.0, steering))
    assert lm.text(some) != lm.text(base)


class TestReport:
    """What is written and shown."""

    def test_files(self, dose: TextDose, tmp_path: Path) -> None:
        odd = replace(dose, texts=[["höre 🙂", *said[1:]] for said in dose.texts])
        write_text_report(odd, tmp_path / "new" / "folder")
        folder = tmp_path / "new" / "folder"
        assert {file.name for file in folder.iterdir()} == {"metrics.json", "samples.md", "dose_response.png"}
        assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(odd.to_dict()))
        samples = (folder / "samples.md").read_text(encoding="utf-8")
        assert samples.count("höre 🙂") == len(DIALS)
        for message in MESSAGES:
            assert f"## {message}\n" in samples
        for dial in ("-1", "0", "+2"):
            assert f"- **{dial}** " in samples
        with (folder / "dose_response.png").open("rb") as picture:
            assert picture.read(4) == b"\x89PNG"

    def test_summary(self, dose: TextDose) -> None:
        said = dose.summary()
        assert all(isinstance(value, str) for value in said.values())
        effect = json.loads(said["sliders.effect"])
        assert effect["measure"] == "length"
        assert effect["prompts"] == 4
        assert list(effect["mean"]) == list(effect["perplexity"]) == ["-1", "0", "+2"]
        assert list(effect["mean"].values()) == pytest.approx(dose.response, abs=1e-3)

    def test_tables_show_texts_as_they_are(self, dose: TextDose) -> None:
        """Brackets are no styles."""
        odd = replace(dose, prompts=["[bold]one", "[/x]"], texts=[["[red]a[/b]", "[/] (c)"] for _ in DIALS])
        with redirect_stdout(io.StringIO()) as shown:
            say(odd.samples(dials=(-1, 0, 1)), odd.table())
        for words_ in ("[bold]one", "[/x]", "[red]a[/b]", "[/] (c)", f"{dose.perplexity[0]:.2f}", "Spearman"):
            assert words_ in shown.getvalue()
        assert shown.getvalue().count("[red]a[/b]") == 2, "dials that were not measured are left out"


class TestErrors:
    """Known before anything is said."""

    def check(self, concept: Concept, words_: str, prompts: int = 4) -> None:
        """Neither the model nor the dial is asked."""
        nobody: Any = None
        with pytest.raises(SliderError, match=words_):
            evaluate_text(nobody, nobody, concept, DIALS, prompts)

    def test_too_few_prompts(self, concept: Concept) -> None:
        self.check(concept, "'mood' is measured on 4 prompts, but 5 are asked for", 5)
        assert heldout_messages(concept, 3) == MESSAGES[:3]

    def test_no_measure(self, concept: Concept) -> None:
        self.check(replace(concept, measure=None), "'mood' has no 'measure'")

    def test_prompts_that_are_not_known(self, concept: Concept) -> None:
        self.check(replace(concept, measure=Measure("length", None)), "'mood'.*--concept")

    def test_an_unknown_score(self, concept: Concept) -> None:
        assert concept.measure is not None
        self.check(replace(concept, measure=replace(concept.measure, attribute="joy")), r"'joy'.*sentiment")
