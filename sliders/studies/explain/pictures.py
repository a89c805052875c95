"""What an update of a model of pictures reads and writes."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from sliders.algebra.change import Change
from sliders.algebra.edit import Affine
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.evaluation.base_states import picture_states
from sliders.evaluation.pictures.sampling import Sampling, scenes
from sliders.runtime.baking import baked
from sliders.studies.explain.reader import Ranking, Reader, moved, ranked, spread

_BATCH = 16
_SCENES = 48


class PredictionReader(Reader[DiffusionBackbone]):
    """Asks the predictions on the way to a picture, of any model of pictures."""

    of = DiffusionBackbone

    def rankings(
        self, backbone: DiffusionBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
    ) -> list[Ranking]:
        return _of_predictions(backbone, changes, prompts, words)


class PictureReader(Reader[UNetBackbone]):
    """Asks the layers that read the prompt as well, which a UNet with cross-attention has."""

    of = UNetBackbone

    def rankings(
        self, backbone: UNetBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
    ) -> list[Ranking]:
        found: list[Ranking] = []
        from_text = set(backbone.select_targets(["xattn-strict"]))
        keyed = [change for change in changes if change.module in from_text]
        if keyed:
            share = "The share of the cross-attention's keys and values that the update changes"
            by_prompt, in_prompts = _text_responses(backbone, keyed, prompts)
            alone, _ = _text_responses(backbone, keyed, words)
            found += [
                ranked("Words it responds to", f"{share} at a word, where it is largest in any prompt.", in_prompts),
                ranked("Words alone", f"{share} where the word is the prompt.", alone),
                ranked("Prompts it responds to", f"{share}.", by_prompt),
            ]
        return [*found, *_of_predictions(backbone, changes, prompts, words)]

    def vocabulary(self, backbone: UNetBackbone, known: Sequence[str]) -> list[str]:
        others = re.findall(r"\b([a-z]{3,})</w>", " ".join(backbone.pipeline.tokenizer.get_vocab()))
        everything = (*known, *others)  # a small vocabulary has ends of words, too
        return [word for word in others if not any(one.endswith(word) for one in everything if one != word)]


def _of_predictions(
    backbone: DiffusionBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
) -> list[Ranking]:
    """At which prompts predictions change most, and which words as a prompt change them likewise."""
    edit = Affine({change.module: change.element() for change in changes})
    shown = spread(prompts, _SCENES)
    states = picture_states(backbone, scenes(shown, len(shown)), Sampling(steps=6))
    plain = picture_states(backbone, scenes([""], 4), Sampling(steps=6))
    with baked(backbone, edit):
        change, change_plain = states.predict() - states.base, plain.predict() - plain.base
    sizes = (states.squared(change) / states.squared(states.base)).sqrt().tolist()
    says = "How far predictions move at states that the base visits on its way to a picture, relative to them."
    by_prompt = ranked("Prompts whose predictions change most", says, zip(shown, sizes, strict=True))

    def cosine(word: str) -> float:
        spoken = replace(plain, prompts=[word] * len(plain.prompts)).predict() - plain.base
        return float(F.cosine_similarity(spoken.flatten(), change_plain.flatten(), dim=0))

    says = "Without a prompt, the cosine between how the update and how the word as a prompt moves predictions."
    return [by_prompt, ranked("Words that do what it does", says, ((word, cosine(word)) for word in words))]


def _text_responses(
    backbone: UNetBackbone, changes: Sequence[Change], texts: Sequence[str]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The mean over each text's places, and the response at each word of each text."""
    by_text: list[tuple[str, float]] = []
    by_word: list[tuple[str, float]] = []
    for start in range(0, len(texts), _BATCH):
        part = list(texts[start : start + _BATCH])
        embeddings = backbone.encode(part)["prompt_embeds"].float()
        shares = torch.stack([moved(change, embeddings)[0] for change in changes]).mean(0).cpu()
        by_text += list(zip(part, shares.mean(1).tolist(), strict=True))
        for text, share in zip(part, shares.tolist(), strict=True):
            word = ""
            for piece, value in zip(backbone.pipeline.tokenizer.tokenize(text), share[1:], strict=False):
                word += piece  # after the begin mark, a place for each piece; the last of a word has read all of it
                if piece.endswith("</w>"):
                    by_word.append((word.removesuffix("</w>"), value))
                    word = ""
    return by_text, [(word, value) for word, value in by_word if word.isalpha()]
