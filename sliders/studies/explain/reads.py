"""What an update reads and writes, asked of the model: words, prompts and tokens that it responds to and promotes.

A layer's response to an input ``x`` is how much of its output the update changes, ``|D x + d|^2 / |W x + b|^2``; over
layers the mean is taken.  It depends on the update alone and on no choice of factors.
"""

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sliders.algebra.change import Change
from sliders.algebra.edit import Affine
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import read_prompts
from sliders.errors import SliderError
from sliders.evaluation.pictures.sampling import Sampling, scenes
from sliders.language.recall import reading, run
from sliders.resources.shipped import shipped
from sliders.runtime.baking import baked
from sliders.studies.base_states import picture_states

PROMPTS = {"image": shipped("data/avatars/prompts"), "text": shipped("data/text/prompts")}
_CARRIER = "He wrote:"
"""What stands before everything that a language model is shown: the first token of a text is read like no other."""
_BATCH = 16
_SCENES = 48
_STREAM = re.compile(r"\.(o_proj|out_proj|down_proj|c_proj|fc2|dense|dense_4h_to_h)$")
"""Layers whose output goes into a transformer's residual stream."""


@dataclass(frozen=True)
class Ranking:
    """Things, and a number for each, the largest first.

    Args:
        title: what they are.
        says: in a sentence, what the number is.
        entries: names and numbers.
    """

    title: str
    says: str
    entries: tuple[tuple[str, float], ...]


def _ranked(title: str, says: str, found: Iterable[tuple[str, float]], keep: int = 40) -> Ranking:
    """The first of them; of one name the largest counts."""
    best: dict[str, float] = {}
    for name, value in sorted(found, key=lambda item: -item[1]):
        best.setdefault(name, value)
    return Ranking(title, says, tuple(best.items())[:keep])


def refusal(backbone: AbstractBackbone) -> str | None:
    """Why a model cannot be asked what an update reads, or None where it can be."""
    if not isinstance(backbone, CausalLMBackbone | UNetBackbone):
        return f"what an update of a {type(backbone).__name__} reads cannot be asked"
    if not any(PROMPTS[backbone.modality].glob("*.txt")):
        return f"what an update reads cannot be asked: there are no prompts in {PROMPTS[backbone.modality]}"
    return None


def _spread(prompts: Sequence[str], most: int) -> Sequence[str]:
    """So many of them, from the first to the last."""
    return prompts[:: max(len(prompts) // most, 1)][:most]


def texts_for(backbone: AbstractBackbone, words: int, most: int | None = None) -> tuple[Sequence[str], list[str]]:
    """The prompts that are shipped for models of this modality, and words: theirs, and those of a small vocabulary.

    Args:
        backbone: loaded.
        words: at most so many.
        most: prompts, evenly spread; None for all.
    """
    files = sorted(PROMPTS[backbone.modality].glob("*.txt"))
    prompts = list(dict.fromkeys(line for file in files for line in read_prompts(file)))
    found = list(dict.fromkeys(word for prompt in prompts for word in re.findall(r"[^\W\d_]{3,}", prompt)))
    if isinstance(backbone, UNetBackbone):  # a small vocabulary has ends of words, too
        others = re.findall(r"\b([a-z]{3,})</w>", " ".join(backbone.pipeline.tokenizer.get_vocab()))
        found += [
            word for word in others if not any(known.endswith(word) for known in (*found, *others) if known != word)
        ]
    return prompts if most is None else _spread(prompts, most), list(dict.fromkeys(found))[:words]


@torch.no_grad()
def reads(
    backbone: AbstractBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
) -> list[Ranking]:
    """What an update responds to, and what it promotes.

    Args:
        backbone: the base, loaded.
        changes: of its layers; those that do not stand out of noise are left out.
        prompts: that are tried.
        words: that are tried, each alone.

    Raises:
        SliderError: the model cannot be asked.
    """
    moved = [change for change in changes if change.update.rank]
    if not moved:
        return []
    if why := refusal(backbone):
        raise SliderError(f"{why}; leave it out: --run false")
    if isinstance(backbone, CausalLMBackbone):
        return _language(backbone, moved, prompts, words)
    assert isinstance(backbone, UNetBackbone)
    return _pictures(backbone, moved, prompts, words)


def _moved(change: Change, x: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the answers to inputs ``x [..., in]`` the update changes ``[...]``, and the change ``[..., out]``."""
    assert change.weight is not None
    bias = None if change.bias is None else change.bias.to(x)
    answered = F.linear(x, change.weight.to(x), bias)
    part = change.of_weight.to(x)
    moved = F.linear(F.linear(x, part.A), part.B, change.of_bias.to(x))
    return moved.square().sum(-1) / answered.square().sum(-1).clamp_min(1e-12), moved


# Language


@torch.no_grad()
def keys_at(backbone: CausalLMBackbone, modules: Sequence[str], words: Sequence[str]) -> dict[str, Tensor]:
    """What layers read at the last token of each word, which stands alone: ``[words, in]`` of each layer."""
    found: dict[str, list[Tensor]] = {module: [] for module in modules}
    for start in range(0, len(words), _BATCH):
        asked = backbone.encode_plain([f"{_CARRIER} {word}" for word in words[start : start + _BATCH]])
        with reading(backbone, modules) as seen:
            run(backbone, asked)
        for module, keys in found.items():
            keys.append(seen[module][:, -1].float().cpu())
    return {module: torch.cat(keys) for module, keys in found.items()}


def _language(
    backbone: CausalLMBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
) -> list[Ranking]:
    tokens: list[tuple[str, float]] = []
    by_word: list[tuple[str, float]] = []
    by_prompt: list[tuple[str, float]] = []
    strongest: list[tuple[float, int, Tensor]] = []
    before = int(backbone.encode_plain([_CARRIER])["prefix_mask"].sum())
    texts = [*words, *sorted(prompts, key=len)]
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        asked = backbone.encode_plain([f"{_CARRIER} {text}" for text in part])
        with reading(backbone, [change.module for change in changes]) as seen:
            _, mask = run(backbone, asked)
        response = torch.zeros(mask.shape)
        written = torch.zeros(*mask.shape, backbone.lm.config.hidden_size)
        for change in changes:
            share, moved = _moved(change, seen[change.module].float())
            response += share.cpu() / len(changes)
            if _STREAM.search(change.module) and moved.shape[-1] == written.shape[-1]:
                written += moved.cpu()
        own = (mask.cumsum(1) > before).cpu()
        ids = asked["prefix"][:, -mask.shape[1] :].cpu()
        for row, text in enumerate(part):
            found = response[row, own[row]]
            if start + row < len(words):
                by_word.append((text, float(found.max())))
            else:
                by_prompt.append((text, float(found.mean())))
                tokens += [(_shown(backbone, int(i)), float(x)) for i, x in zip(ids[row, own[row]], found, strict=True)]
            place = int(found.argmax())
            most = (float(found[place]), start + row, written[row, own[row]][place])
            strongest = heapq.nlargest(10, [*strongest, most])
    share = "The share of the changed layers' outputs that the update changes"
    promoted = torch.stack([direction for _, _, direction in strongest]).mean(0)
    rankings = [
        _ranked("Words it responds to", f"{share} at a word, which stands alone.", by_word),
        _ranked("Tokens it responds to", f"{share} at a token, where it is largest in any prompt.", tokens),
        _ranked("Prompts it responds to", f"{share}, on average over the prompt's tokens.", by_prompt),
    ]
    if promoted.any():
        said = _lens(backbone, promoted)
        names = ((_shown(backbone, i), float(said[i])) for i in said.topk(min(60, len(said))).indices.tolist())
        says = (
            "What the update adds to the residual stream where it responds most, read through the output layer as if "
            "no layer came after it: logits."
        )
        rankings.append(_ranked("Tokens it promotes", says, names))
    return rankings


def _shown(backbone: CausalLMBackbone, token: int) -> str:
    text = backbone.tokenizer.decode([token]).strip()
    return text if text and text.isprintable() else repr(text)


def _lens(backbone: CausalLMBackbone, direction: Tensor) -> Tensor:
    """Logits ``[vocabulary]`` of a direction in the residual stream, through the last norm's scale."""
    named = backbone.lm.base_model.named_parameters()
    scales = [weight for name, weight in named if re.fullmatch(r"(ln_f|[^.]*norm[^.]*)\.weight", name)]
    scaled = direction * (scales[-1].float().cpu() if scales else 1)
    return backbone.lm.get_output_embeddings().weight.float().cpu() @ scaled


# Pictures


def _pictures(
    backbone: UNetBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
) -> list[Ranking]:
    found: list[Ranking] = []
    from_text = set(backbone.select_targets(["xattn-strict"]))
    keyed = [change for change in changes if change.module in from_text]
    if keyed:
        share = "The share of the cross-attention's keys and values that the update changes"
        by_prompt, in_prompts = _text_responses(backbone, keyed, prompts)
        alone, _ = _text_responses(backbone, keyed, words)
        found += [
            _ranked("Words it responds to", f"{share} at a word, where it is largest in any prompt.", in_prompts),
            _ranked("Words alone", f"{share} where the word is the prompt.", alone),
            _ranked("Prompts it responds to", f"{share}.", by_prompt),
        ]
    edit = Affine({change.module: change.element() for change in changes})
    shown = _spread(prompts, _SCENES)
    states = picture_states(backbone, scenes(shown, len(shown)), Sampling(steps=6))
    plain = picture_states(backbone, scenes([""], 4), Sampling(steps=6))
    with baked(backbone, edit):
        moved, moved_plain = states.predict() - states.base, plain.predict() - plain.base
    sizes = (states.squared(moved) / states.squared(states.base)).sqrt().tolist()
    says = "How far predictions move at states that the base visits on its way to a picture, relative to them."
    found.append(_ranked("Prompts whose predictions change most", says, zip(shown, sizes, strict=True)))

    def cosine(word: str) -> float:
        spoken = replace(plain, prompts=[word] * len(plain.prompts)).predict() - plain.base
        return float(F.cosine_similarity(spoken.flatten(), moved_plain.flatten(), dim=0))

    says = "Without a prompt, the cosine between how the update and how the word as a prompt moves predictions."
    found.append(_ranked("Words that do what it does", says, ((word, cosine(word)) for word in words)))
    return found


def _text_responses(
    backbone: UNetBackbone, changes: Sequence[Change], texts: Sequence[str]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The mean over each text's places, and the response at each word of each text."""
    by_text: list[tuple[str, float]] = []
    by_word: list[tuple[str, float]] = []
    for start in range(0, len(texts), _BATCH):
        part = list(texts[start : start + _BATCH])
        embeddings = backbone.encode(part)["prompt_embeds"].float()
        shares = torch.stack([_moved(change, embeddings)[0] for change in changes]).mean(0).cpu()
        by_text += list(zip(part, shares.mean(1).tolist(), strict=True))
        for text, share in zip(part, shares.tolist(), strict=True):
            word = ""
            for piece, value in zip(backbone.pipeline.tokenizer.tokenize(text), share[1:], strict=False):
                word += piece  # after the begin mark, a place for each piece; the last of a word has read all of it
                if piece.endswith("</w>"):
                    by_word.append((word.removesuffix("</w>"), value))
                    word = ""
    return by_text, [(word, value) for word, value in by_word if word.isalpha()]
