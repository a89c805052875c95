"""What an update of a language model reads and writes."""

import heapq
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sliders.algebra.change import Change
from sliders.algebra.explain import Inputs
from sliders.backbones.language.model import CausalLMBackbone
from sliders.language.covariance import Covariance
from sliders.language.recall import reading, run
from sliders.studies.explain.reader import Ranking, Reader, moved, ranked

_CARRIER = "He wrote:"
"""What stands before everything that a language model is shown: the first token of a text is read like no other."""
_BATCH = 16
_STREAM = re.compile(r"\.(o_proj|out_proj|down_proj|c_proj|fc2|dense|dense_4h_to_h)$")
"""Layers whose output goes into a transformer's residual stream."""


class TextReader(Reader[CausalLMBackbone]):
    """Shows texts to a language model, and reads what is written through its output layer."""

    of = CausalLMBackbone

    def rankings(
        self, backbone: CausalLMBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
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
                share, part_moved = moved(change, seen[change.module].float())
                response += share.cpu() / len(changes)
                if _STREAM.search(change.module) and part_moved.shape[-1] == written.shape[-1]:
                    written += part_moved.cpu()
            own = (mask.cumsum(1) > before).cpu()
            ids = asked["prefix"][:, -mask.shape[1] :].cpu()
            for row, text in enumerate(part):
                found = response[row, own[row]]
                if start + row < len(words):
                    by_word.append((text, float(found.max())))
                else:
                    by_prompt.append((text, float(found.mean())))
                    tokens += [
                        (_shown(backbone, int(i)), float(x)) for i, x in zip(ids[row, own[row]], found, strict=True)
                    ]
                place = int(found.argmax())
                most = (float(found[place]), start + row, written[row, own[row]][place])
                strongest = heapq.nlargest(10, [*strongest, most])
        share = "The share of the changed layers' outputs that the update changes"
        promoted = torch.stack([direction for _, _, direction in strongest]).mean(0)
        rankings = [
            ranked("Words it responds to", f"{share} at a word, which stands alone.", by_word),
            ranked("Tokens it responds to", f"{share} at a token, where it is largest in any prompt.", tokens),
            ranked("Prompts it responds to", f"{share}, on average over the prompt's tokens.", by_prompt),
        ]
        if promoted.any():
            said = _lens(backbone, promoted)
            names = ((_shown(backbone, i), float(said[i])) for i in said.topk(min(60, len(said))).indices.tolist())
            says = (
                "What the update adds to the residual stream where it responds most, read through the output layer as "
                "if no layer came after it: logits."
            )
            rankings.append(ranked("Tokens it promotes", says, names))
        return rankings

    def inputs(self, backbone: CausalLMBackbone, modules: Sequence[str], words: Sequence[str]) -> Mapping[str, Inputs]:
        moments, keys = Covariance().estimate(backbone, modules), _keys_at(backbone, modules, words)
        return {module: Inputs(moments[module], tuple(words), keys[module]) for module in modules}


@torch.no_grad()
def _keys_at(backbone: CausalLMBackbone, modules: Sequence[str], words: Sequence[str]) -> dict[str, Tensor]:
    """What layers read at the last token of each word, which stands alone: ``[words, in]`` of each layer."""
    found: dict[str, list[Tensor]] = {module: [] for module in modules}
    for start in range(0, len(words), _BATCH):
        asked = backbone.encode_plain([f"{_CARRIER} {word}" for word in words[start : start + _BATCH]])
        with reading(backbone, modules) as seen:
            run(backbone, asked)
        for module, keys in found.items():
            keys.append(seen[module][:, -1].float().cpu())
    return {module: torch.cat(keys) for module, keys in found.items()}


def _shown(backbone: CausalLMBackbone, token: int) -> str:
    text = backbone.tokenizer.decode([token]).strip()
    return text if text and text.isprintable() else repr(text)


def _lens(backbone: CausalLMBackbone, direction: Tensor) -> Tensor:
    """Logits ``[vocabulary]`` of a direction in the residual stream, through the last norm's scale."""
    named = backbone.lm.base_model.named_parameters()
    scales = [weight for name, weight in named if re.fullmatch(r"(ln_f|[^.]*norm[^.]*)\.weight", name)]
    scaled = direction * (scales[-1].float().cpu() if scales else 1)
    return backbone.lm.get_output_embeddings().weight.float().cpu() @ scaled
