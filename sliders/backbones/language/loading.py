"""How a language model is read: from a folder, the hub, or a package index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from sliders.backbones.placement import Placement, weights
from sliders.errors import SliderError, one_line
from sliders.formats.pretrained import load_model
from sliders.resources.fetch import FETCHED, fetch


def place_of(model: str) -> str:
    """What transformers loads: the folder of a fetched model, or what the user gave."""
    return str(fetch(model)) if model in FETCHED else model


@dataclass(frozen=True)
class Stored:
    """A language model that is stored somewhere.

    Args:
        place: its folder or hub name, see `place_of`.
        revision: of a hub model: a branch, a tag or a commit.
        variant: of the files that are read, such as ``fp16``, where it has several.
    """

    place: str
    revision: str | None = None
    variant: str | None = None

    def read(self, placement: Placement) -> tuple[Any, Any]:
        """The model, on its device, and its tokenizer.

        Raises:
            SliderError: they cannot be read, or there is no such device.
        """
        place = self.place
        if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") > 1):
            names = ", ".join(FETCHED)
            raise SliderError(
                f"no base model at {place}: give the folder of a transformers model, a hub name, or {names}"
            )
        device = placement.found()
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=self.revision)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SliderError(f"cannot load the tokenizer of {place}: {one_line(error)}") from error
        which = {"revision": self.revision, "variant": self.variant}
        lm = load_model(AutoModelForCausalLM, place, dtype=self._dtype(device, placement), **which)
        return lm.to(device), tokenizer

    @property
    def folder(self) -> Path:
        """Where its files are, also those that the hub's model was just read from."""
        if (folder := Path(self.place)).exists():
            return folder
        return Path(str(cached_file(self.place, "config.json", revision=self.revision))).parent

    def _dtype(self, device: torch.device, placement: Placement) -> torch.dtype | str:
        """The precision to read it in; ``auto`` leaves it to transformers, which reads the hub's config."""
        if (folder := Path(self.place)).exists():
            return placement.precision(device, weights(folder, self.variant))
        unknown = placement.dtype == "auto" and device.type != "cpu"
        return "auto" if unknown else placement.precision(device, [])
