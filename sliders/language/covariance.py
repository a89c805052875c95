"""The second moments of what a layer reads, ``C = E[k k^T]``, over text: what ROME and MEMIT weigh a change by."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import take, widened
from sliders.concept import read_prompts
from sliders.errors import SliderError
from sliders.files import replacing
from sliders.language.recall import reading, run
from sliders.resources.fetch import cache_folder
from sliders.resources.shipped import shipped
from sliders.runtime.attach import is_attached
from sliders.runtime.layers import weight_shape


@dataclass(frozen=True)
class Covariance:
    """How second moments are taken.

    Args:
        texts: text files, one text a line.
        ridge: added to the diagonal, in shares of its mean: there are fewer tokens here than in an encyclopaedia.
        batch: texts at a time.
    """

    texts: list[Path] = field(default_factory=lambda: [shipped("data/text/sampled.txt")])
    ridge: float = 0.01
    batch: int = 16

    def fit(self, backbone: CausalLMBackbone, layers: Sequence[str]) -> dict[str, Tensor]:
        """``C + ridge`` of each layer, ``[in, in]`` in float64, where there are enough tokens for it.

        Raises:
            SliderError: there are no more tokens than a layer has inputs; or see `estimate`.
        """
        found = self._moments(backbone, layers)
        for layer, (moment, tokens) in found.items():
            if tokens <= len(moment):
                raise SliderError(
                    f"covariance.texts hold {tokens} tokens, but {layer!r} reads {len(moment)} numbers; give more text"
                )
        return {layer: ridged(moment, self.ridge) for layer, (moment, _) in found.items()}

    def estimate(self, backbone: CausalLMBackbone, layers: Sequence[str]) -> dict[str, Tensor]:
        """The same however few tokens there are: where these are fewer than the inputs, most of it is the ridge.

        They are those of the base, as in the papers, and kept in the user's cache: one edit after another is then
        fitted with one ``C``, as the laws of `docs/derivations/` assume.

        Raises:
            SliderError: the model is edited already, and its moments were not taken before.
        """
        return {layer: ridged(moment, self.ridge) for layer, (moment, _) in self._moments(backbone, layers).items()}

    def _moments(self, backbone: CausalLMBackbone, layers: Sequence[str]) -> dict[str, tuple[Tensor, int]]:
        """Each layer's second moment, and of how many tokens it is."""
        found = {layer: kept for layer in layers if (kept := self._cached(backbone, layer)) is not None}
        if missing := [layer for layer in layers if layer not in found]:
            if is_attached(backbone):
                raise SliderError(
                    f"the second moments of {missing[0]!r} are those of the base, but the model is edited already; "
                    "fit once to the base, and they are kept"
                )
            taken, tokens = second_moments(backbone, missing, self._lines(), self.batch)
            for layer, moment in taken.items():
                found[layer] = moment, tokens
                self._keep(backbone, layer, moment, tokens)
        return {layer: found[layer] for layer in layers}

    def _lines(self) -> list[str]:
        return [line for file in self.texts for line in read_prompts(file)]

    def _file(self, backbone: CausalLMBackbone, layer: str) -> Path:
        text = hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()[:16]
        precision = "" if backbone.dtype == torch.float32 else f"-{backbone.dtype}".replace("torch.", "")
        return cache_folder() / "covariance" / f"{backbone.fingerprint()}-{layer}-{text}{precision}.safetensors"

    def _cached(self, backbone: CausalLMBackbone, layer: str) -> tuple[Tensor, int] | None:
        """A kept moment and its number of tokens, if they are there and whole."""
        try:
            with safe_open(self._file(backbone, layer), "pt") as file:
                return file.get_tensor("moment"), int(file.metadata()["tokens"])
        except (OSError, SafetensorError):
            return None

    def _keep(self, backbone: CausalLMBackbone, layer: str, moment: Tensor, tokens: int) -> None:
        with replacing(self._file(backbone, layer)) as new:
            save_file({"moment": moment.contiguous()}, new, {"layer": layer, "tokens": str(tokens)})


def ridged(moment: Tensor, ridge: float) -> Tensor:
    """``C + ridge tr(C) / n I``."""
    return moment + ridge * moment.trace() / len(moment) * torch.eye(len(moment)).to(moment)


@torch.no_grad()
def second_moments(
    backbone: CausalLMBackbone, layers: Sequence[str], texts: Sequence[str], batch: int = 16
) -> tuple[dict[str, Tensor], int]:
    """``E[k k^T]`` of what layers read, ``[in, in]`` summed in float64, and of how many tokens; long texts are cut."""
    sums = {layer: torch.zeros(*[weight_shape(backbone, layer)[1]] * 2, dtype=torch.float64) for layer in layers}
    tokens = 0
    asked = backbone.encode_plain(sorted(texts, key=len), cut=True)  # alike in length, so that little is padding
    for index in torch.arange(len(texts)).split(batch):
        part = take(asked, index)
        with reading(backbone, layers) as seen:
            _, mask = run(backbone, part)
        tokens += int(mask.sum())
        for layer, total in sums.items():
            keys = widened(seen[layer][mask])
            total += (keys.T @ keys).double().cpu()
    return {layer: total / tokens for layer, total in sums.items()}, tokens
