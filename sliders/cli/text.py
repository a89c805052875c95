"""What the `sliders` commands do with a language model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sliders.algebra.slider import NamedDial
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import BETWEEN, Concept
from sliders.console import say
from sliders.evaluation.texts.dose import evaluate_text, heldout_messages, log_odds
from sliders.evaluation.texts.report import write_text_report
from sliders.evaluation.texts.sampling import Speaking, say_with_oracle
from sliders.evaluation.texts.scores import distinct, read, repetition
from sliders.files import write_text
from sliders.formats.metadata import concept_of
from sliders.report.drawing import dial_label
from sliders.runtime.attach import attach


def stream(backbone: CausalLMBackbone, prompt: str, seed: int, how: Speaking) -> None:
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


def preview(
    backbone: CausalLMBackbone, concept: Concept, amounts: Sequence[float], prompts: int, how: Speaking, out: Path
) -> None:
    """Show what the formula itself says at sampling time, before any training."""
    messages = heldout_messages(concept, prompts)
    states = say_with_oracle(backbone, concept, messages, amounts, how)
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
    backbone: CausalLMBackbone,
    prompts: Sequence[str],
    loaded: Sequence[NamedDial],
    positions: dict[str, float],
    seeds: Sequence[int],
    how: Speaking,
) -> None:
    """Stream a response to every prompt and seed, the base's and then the turned one."""
    for prompt in prompts:
        for seed in seeds:
            say(f"> {prompt}" + (f"  (seed {seed})" if len(seeds) > 1 else ""))
            if loaded:
                say("base:")
            stream(backbone, prompt, seed, how)
            if not loaded:
                continue
            say("  ".join(f"{name} {dial_label(position)}" for name, position in positions.items()) + ":")
            with attach(backbone, loaded, positions):
                stream(backbone, prompt, seed, how)


def evaluate(
    backbone: CausalLMBackbone,
    slider: NamedDial,
    concept: Concept | None,
    dials: Sequence[float],
    prompts: int,
    how: Speaking,
    out: Path,
) -> None:
    """Measure a slider of a language model, and write and print what was found."""
    what = (concept or concept_of(slider)).worded("text")
    with attach(backbone, [slider]) as attached:
        dose = evaluate_text(backbone, lambda d: attached.turned({slider.name: d}), what, dials, prompts, how)
    write_text_report(dose, out)
    say(dose.samples(), dose.table(), f"report  {out}")
