"""Text: responses, which are streamed, and the scores that read them."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from sliders.algebra.slider import NamedDial
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import BETWEEN, Concept
from sliders.console import say
from sliders.errors import SliderError
from sliders.evaluation.base_states import BaseStates, text_states
from sliders.evaluation.texts.dose import evaluate_text, heldout_messages, log_odds
from sliders.evaluation.texts.report import write_text_report
from sliders.evaluation.texts.sampling import TextSampling, say_with_oracle
from sliders.evaluation.texts.scores import distinct, read, repetition
from sliders.evaluation.texts.watching import TextWatch
from sliders.evaluation.watching import Plan
from sliders.files import write_text
from sliders.formats.metadata import concept_of
from sliders.media.base import Medium
from sliders.report.drawing import dial_label
from sliders.resources.paths import Source
from sliders.runtime.attach import attach


def stream(backbone: CausalLMBackbone, prompt: str, seed: int, how: TextSampling) -> None:
    """Print a response while it is made."""
    conditioning = backbone.encode([prompt if BETWEEN in prompt else BETWEEN + prompt])
    said: list[int] = []
    shown = ""
    for token in backbone.stream(conditioning, [seed], how.tokens, how.temperature):
        said.append(int(token))
        text = backbone.tokenizer.decode(said, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n\n")


class Texts(Medium[CausalLMBackbone, TextSampling]):
    """What language models answer."""

    flags = ("speaking",)
    amounts = (0.5, 1, 2, 3)
    how = TextSampling
    probing = Plan((-1.0, 0.0, 1.0), 12, TextSampling(tokens=24))
    reporting = Plan((-2.0, -1.0, 0.0, 1.0, 2.0), 64, TextSampling())

    def place(self, out: Path | None) -> None:
        """Nothing is written."""

    def preview(
        self,
        backbone: CausalLMBackbone,
        concept: Concept,
        amounts: Sequence[float],
        count: int,
        how: TextSampling | None,
        out: Path,
        judge: Source | Path | None = None,
    ) -> None:
        messages = heldout_messages(concept, count)
        states = say_with_oracle(backbone, concept, messages, amounts, how or TextSampling())
        texts = [backbone.text(state) for state in states]
        score = concept.measure.attribute if concept.measure else ""
        table = Table("dial x eta", score or "-", "log-odds", "distinct-2", "repetition", title=concept.name)
        found: list[dict[str, object]] = []
        for amount, state, said in zip(amounts, states, texts, strict=True):
            mean = float(read(score, said).mean()) if score else None
            odds = float(log_odds(backbone, concept, messages, state).mean())
            row = {"amount": amount, "mean": mean, "log_odds": odds, "distinct": distinct(said)}
            found.append({**row, "repetition": repetition(said), "texts": said})
            shown = (f"{odds:+.3f}", f"{distinct(said):.2f}", f"{repetition(said):.3f}")
            table.add_row(dial_label(amount), "" if mean is None else f"{mean:.2f}", *shown)
        write_text(out / "preview.json", json.dumps({"prompts": messages, "amounts": found}, indent=1))
        for amount, said in zip(amounts, texts, strict=True):
            say(f"{dial_label(amount)}: {said[0]}")
        say(table, f"texts   {out / 'preview.json'}")

    def generate(
        self,
        backbone: CausalLMBackbone,
        prompts: Sequence[str],
        seeds: Sequence[int],
        dials: Sequence[NamedDial],
        positions: Mapping[str, float],
        how: TextSampling | None,
        out: Path | None,
    ) -> None:
        how = how or TextSampling(tokens=96)
        for prompt in prompts:
            for seed in seeds:
                say(f"> {prompt}" + (f"  (seed {seed})" if len(seeds) > 1 else ""))
                if dials:
                    say("base:")
                stream(backbone, prompt, seed, how)
                if not dials:
                    continue
                say("  ".join(f"{name} {dial_label(position)}" for name, position in positions.items()) + ":")
                with attach(backbone, dials, positions):
                    stream(backbone, prompt, seed, how)

    def evaluate(
        self,
        backbone: CausalLMBackbone,
        dial: NamedDial,
        concept: Concept | None,
        positions: Sequence[float],
        count: int,
        how: TextSampling | None,
        out: Path,
        judge: Source | Path | None = None,
        oracle: bool = False,
        eta: float | None = None,
    ) -> None:
        what, how = (concept or concept_of(dial)).worded("text"), how or TextSampling()
        with attach(backbone, [dial]) as attached:
            dose = evaluate_text(backbone, lambda d: attached.turned({dial.name: d}), what, positions, count, how)
        write_text_report(dose, out)
        say(dose.samples(), dose.table(), f"report  {out}")

    def states(
        self,
        backbone: CausalLMBackbone,
        prompts: Sequence[str],
        count: int,
        target: str = "",
        how: TextSampling | None = None,
        seed: int | None = None,
    ) -> BaseStates:
        how = how or TextSampling()
        if len(prompts) < count:
            raise SliderError(f"there are {len(prompts)} messages for {count} scenes; lower --scenes or give --prompts")
        how = how if seed is None else replace(how, first_seed=seed)
        return text_states(backbone, target, prompts[:count], how)

    def watch(self, concept: Concept, plan: Plan[TextSampling], judge: Source | Path | None = None) -> TextWatch:
        if judge is not None:
            raise SliderError(f"{judge} reads pictures, and text is read by the concept's score; set judge to null")
        return TextWatch(concept, plan)


MEDIUM = Texts()
