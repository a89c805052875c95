"""Whole models as their libraries store them: a diffusers pipeline's or a transformers model's folder of safetensors.

Tensors are read one layer at a time, and layers are named as `sliders.attach` names them in a loaded model: by the
pipeline's component, or by ``lm`` for a language model.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sliders.algebra.change import Change, between
from sliders.errors import SliderError

_INDEX, _CONFIG = "model_index.json", "config.json"
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)(-\d+-of-\d+)?\.safetensors$")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a whole model."""
    return (path / _INDEX).is_file() or ((path / _CONFIG).is_file() and any(path.glob("*.safetensors")))


class Checkpoint:
    """The tensors of a model's folder, read when they are asked for.

    Args:
        folder: of a diffusers pipeline, or of a transformers language model.

    Raises:
        SliderError: it holds no safetensors, or they are corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = (folder / _INDEX).is_file()
        files = sorted(folder.glob("*/*.safetensors" if self.pictures else "*.safetensors"))
        files = [file for file in files if not _VARIANT.search(file.name)]
        if not files:
            raise SliderError(f"{folder} holds no model in safetensors; only these are read")
        self._places: dict[str, tuple[Path, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            component = file.parent.name if self.pictures else "lm"
            try:
                with safe_open(file, "pt") as opened:
                    found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise SliderError(f"{file} is not a readable safetensors file: {error}") from error
            for key, shape in found.items():
                name = re.sub(r"^text_model\.", "", key) if component.startswith("text_encoder") else key
                self._places[f"{component}.{name}"], self.shapes[f"{component}.{name}"] = (file, key), shape
        biased = [name.removesuffix("bias") for name in self if name.endswith(".bias")]
        matrices = {name: self.shapes.get(f"{name}weight", ()) for name in biased}
        self._inputs_first = any(
            len(shape) == 2 and shape[0] != self.shapes[f"{name}bias"][0] for name, shape in matrices.items()
        )

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def tensor(self, name: str) -> Tensor:
        """The tensor of a parameter's full name.

        Raises:
            SliderError: there is none.
        """
        if name not in self._places:
            raise SliderError(f"{self.folder} has no {name!r}; is it the base of this update?")
        file, key = self._places[name]
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(key)

    def layer(self, module: str) -> tuple[Tensor, Tensor | None]:
        """A layer's weight with the outputs first, also where the model keeps it transposed (GPT-2), and its bias."""
        weight = self.tensor(f"{module}.weight")
        if f"{module}.bias" not in self:
            return weight, None
        return weight.T if self._inputs_first and weight.dim() == 2 else weight, self.tensor(f"{module}.bias")

    def is_layer(self, module: str) -> bool:
        """Whether a module has a weight that is a matrix or a convolution's kernel."""
        return len(self.shapes.get(f"{module}.weight", ())) in (2, 4)


def differences(before: Checkpoint, after: Checkpoint) -> tuple[list[Change], dict[str, float]]:
    """Every layer that differs, and the relative change of all other parameters, such as norms' scales, by name.

    Raises:
        SliderError: one has parameters that the other lacks, or of another shape.
    """
    if unlike := sorted({name for name in {*before, *after} if (name in before) != (name in after)} - _biases(after)):
        raise SliderError(f"{before.folder} and {after.folder} are not of one architecture: only one has {unlike[0]!r}")
    changes: list[Change] = []
    others: dict[str, float] = {}
    for name in after:
        module, _, last = name.rpartition(".")
        if last == "bias" and after.is_layer(module):
            continue
        if last == "weight" and after.is_layer(module):
            (old, old_bias), (new, new_bias) = before.layer(module), after.layer(module)
            same_bias = new_bias is None or (old_bias is not None and bool((old_bias == new_bias).all()))
            if old.shape != new.shape or not bool((old == new).all()) or not same_bias:
                changes.append(between(module, old, new, old_bias, new_bias))
            continue
        old, new = before.tensor(name), after.tensor(name)
        if old.shape != new.shape:
            raise SliderError(f"{name!r} is {tuple(old.shape)} in one and {tuple(new.shape)} in the other")
        if new.is_floating_point() and (moved := float((new.double() - old.double()).norm())):
            others[name] = moved / max(float(old.double().norm()), 1e-30)
    return changes, others


def _biases(after: Checkpoint) -> set[str]:
    """Biases that layers may have been given by an edit."""
    return {name for name in after if name.endswith(".bias") and name.removesuffix("bias") + "weight" in after}
