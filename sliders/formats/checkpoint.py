"""Whole models as their libraries store them: a diffusers pipeline's or a transformers model's folder of safetensors.

Tensors are read one layer at a time, and layers are named as in a loaded backbone: by the pipeline's component, or by
``lm`` for a language model.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from sliders.algebra.change import Change, between
from sliders.errors import SliderError
from sliders.formats.skeleton import INDEX, skeletons
from sliders.formats.stored import Place, all_places, variants
from sliders.runtime.layers import as_edited

_CONFIG = "config.json"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a whole model."""
    return (path / INDEX).is_file() or ((path / _CONFIG).is_file() and any(path.glob("*.safetensors")))


class Checkpoint:
    """The tensors of a model's folder, read when they are asked for.

    Args:
        folder: of a diffusers pipeline, or of a transformers language model.

    Raises:
        SliderError: it holds no safetensors, they are corrupt, or the libraries do not know the model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = (folder / INDEX).is_file()
        parts = {name: folder / name for name in _folders(folder)} if self.pictures else {"lm": folder}
        files = {name: found for name, part in parts.items() if (found := variants(part).get(None))}
        if not files:
            raise SliderError(f"{folder} holds no model in safetensors; only these are read")
        self._models = skeletons(folder)
        self._places: dict[str, Place] = {}
        self._same: dict[str, str] = {}
        for name, there in files.items():
            model = self._models.get(name)
            found = {f"{name}.{called}": place for called, place in all_places(model, there).items()}
            self._places |= found
            for shared in [] if model is None else tied(model):
                stored = next((one for one in shared if f"{name}.{one}" in found), None)
                self._same |= {f"{name}.{one}": f"{name}.{stored}" for one in shared if stored not in (None, one)}
        self.shapes = {name: place.shape for name, place in self._places.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._same

    def __iter__(self) -> Iterator[str]:
        """The parameters' names; of those that share one tensor, the one that it is stored as."""
        return iter(self._places)

    def tensor(self, name: str) -> Tensor:
        """The tensor of a parameter's full name.

        Raises:
            SliderError: there is none.
        """
        place = self._places.get(self._same.get(name, name))
        if place is None:
            raise SliderError(f"{self.folder} has no {name!r}; is it the base of this update?")
        return place.read()

    def layer(self, module: str) -> tuple[Tensor, Tensor | None]:
        """A layer's weight with the outputs first, also where the model keeps it transposed (GPT-2), and its bias."""
        weight = self.tensor(f"{module}.weight")
        bias = self.tensor(f"{module}.bias") if f"{module}.bias" in self else None
        component, _, inside = module.partition(".")
        model = self._models.get(component)
        return weight if model is None else as_edited(model.get_submodule(inside), weight), bias

    def is_layer(self, module: str) -> bool:
        """Whether a module has a weight that is a matrix or a convolution's kernel."""
        weight = f"{module}.weight"
        return len(self.shapes.get(self._same.get(weight, weight), ())) in (2, 4)


def _folders(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir() if part.is_dir())


def tied(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that are one, for those that have several."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    return [names for names in shared.values() if len(names) > 1]


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
