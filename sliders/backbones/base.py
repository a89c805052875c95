"""What every model family offers to the rest of the package."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sliders.algebra.edit import Edit, Translation
from sliders.algebra.slider import Slider
from sliders.backbones.fingerprint import hash_files, hash_named, hash_tensors, state_of
from sliders.backbones.placement import Placement, Precision
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.files import check_place, replacing_folder
from sliders.formats import diffusers
from sliders.formats.baking import Baked, write_edited
from sliders.formats.stored import places
from sliders.runtime.baking import baked, base_tensors
from sliders.runtime.layers import editable_modules, select_modules

Predictor = Callable[[TensorBatch], Tensor]
"""From a state to the prediction for it."""


@dataclass(frozen=True)
class TargetGroup:
    """A named set of layers: regular expressions of which one must be found, and those of which none may be."""

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()


class AbstractBackbone(ABC, nn.Module):
    """A frozen model: what it conditions on, the states it is asked about, and what it predicts.

    A *state* and a *conditioning* are `TensorBatch`es whose names only the backbone knows.  A *prediction* is a tensor
    ``[n, ...]`` in a space where adding makes sense (noise, v, velocity, log-probabilities), and which of these it is
    nobody else knows.  The constructor does no I/O; `load` does.
    """

    placement: Placement = Placement()
    """Where `load` puts the weights, and in which precision it reads them; afterwards it says nothing more."""

    origin: Path | None = None
    """The folder that the model was read from."""

    conditioning_modules: tuple[str, ...] = ()
    """Top-level modules that `encode` runs: a slider on one of them changes the conditioning."""

    predicting_modules: tuple[str, ...] = ()
    """Top-level modules that `predict` runs.  A slider can be on these and on `conditioning_modules`, nowhere else."""

    modality: ClassVar[str]
    """Which wording of a concept speaks to it: ``image`` or ``text``."""

    space: str
    """Where predictions lie, for losses that are made for one space: one of `sliders.losses.erasure.SPACES`."""

    @property
    def recipe(self) -> str:
        """The config whose settings a training on such a model has where it is not told others, such as ``sd15/age``.

        Raises:
            SliderError: no config comes with the package for its family.
        """
        raise SliderError(f"no config comes with the package for a {type(self).__name__}; give one")

    def place(self, device: str | None, dtype: Precision | None) -> None:
        """Say before `load` where the weights shall be and in which precision; None leaves it as it was said before.

        Raises:
            SliderError: there are no such devices or precisions.
        """
        self.placement = self.placement.but(device, dtype)

    @abstractmethod
    def load(self) -> None:
        """Read the weights, frozen and in evaluation mode.  Calling it again does nothing."""

    @property
    @abstractmethod
    def base_model(self) -> str:
        """The name or folder of the model, as the user gave it."""

    def _remember(self, origin: Path | None = None, files: Mapping[str, Sequence[Path]] | None = None) -> None:
        """Note that the model is in memory now, as it was given or as it was read.

        Args:
            origin: the folder that it was read from; without, the weights in memory are what counts.
            files: those in safetensors that each component was read from.
        """
        self.origin = origin
        self._hashes: dict[str, str] = {}
        self._files = {name: (there, state_of(there)) for name, there in (files or {}).items() if there}

    def _unchanged(self, component: str) -> Sequence[Path]:
        """The files that a component was read from, if they are still what they were."""
        files, state = self._files.get(component, ((), None))
        return files if state is not None and state_of(files) == state else ()

    def fingerprint(self, components: Iterable[str] | None = None) -> str:
        """Hashes of the weights of components (all unless given), as ``unet=...,vae=...``.

        Two models with the same one are the same base to whatever is on these components.  They are computed when they
        are first asked for; see `sliders.backbones.fingerprint`.
        """
        parts = dict(self.named_children())
        for name in (wanted := sorted(parts if components is None else set(components))):
            if name not in self._hashes:
                files, own = self._unchanged(name), (tensor for _, tensor in base_tensors(parts[name]))
                self._hashes[name] = hash_files(files) if files else hash_tensors(own)
        return ",".join(f"{name}={self._hashes[name]}" for name in wanted)

    def old_fingerprint(self) -> str:
        """What sliders of earlier versions say of their base: a hash of all weights at once, as float32 holds them.

        They are the stored ones where there are files, whatever precision they were read in.
        """
        parts = dict(self.named_children())
        alone = len(parts) == 1  # a language model's were named without their component
        tensors: dict[str, Callable[[], Tensor]] = {}
        for component, part in parts.items():
            own = dict(base_tensors(part))
            stored = places(part, self._unchanged(component), own)
            shared = {tensor.data_ptr(): stored[key] for key, tensor in own.items() if key in stored}  # by tied ones
            for key, tensor in own.items():
                place = stored.get(key) or shared.get(tensor.data_ptr())
                tensors[key if alone else f"{component}.{key}"] = place.read if place else partial(_given, tensor)
        return hash_named(tensors)

    @abstractmethod
    def target_groups(self) -> dict[str, TargetGroup]:
        """Named sets of layers for sliders, such as ``xattn``."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        """The conditioning of each prompt, a row each."""

    def unread(self, prompts: Sequence[str]) -> dict[str, str]:
        """Which prompts `encode` reads only a part of, and what it leaves out, to follow the prompt in a message."""
        return {}

    @abstractmethod
    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        """The model's prediction ``[n, ...]``, row by row."""

    def export(self, folder: Path, edit: Edit | None = None, replace: bool = False) -> Baked:
        """Write the model as its own library loads it; the folder appears whole or not at all.

        With an edit, a model that was read from files in safetensors is copied, and nothing but the edited weights
        changes.  Without one, and of a model that was given in memory, everything is written anew as it is now.

        Args:
            folder: of the new model.
            edit: of its layers, in its weights.
            replace: what is there already.

        Raises:
            SliderError: there is something already, or the model has no place for what the edit makes.
        """
        check_place(folder, folder=True, new=not replace)
        touched = {module.partition(".")[0] for module in edit.modules} if edit is not None else set()
        with replacing_folder(folder) as new:
            if edit is not None and self.origin is not None and all(self._unchanged(part) for part in touched):
                return write_edited(self._whole(), edit, new)
            parameters = set(dict(self.named_parameters()))
            with baked(self, edit or Translation({})):
                if grown := set(dict(self.named_parameters())) - parameters:
                    raise SliderError(
                        f"the edit makes {min(grown)!r}, for which a checkpoint of {self.base_model} has no place; "
                        "keep it as a file and turn it with --slider"
                    )
                self.write(new)
        return Baked()

    def _whole(self) -> Path:
        """The folder that the model was read from, with all that belongs to it."""
        assert self.origin is not None
        return self.origin

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the model as it is now into a folder, in the layout its own library loads."""

    @abstractmethod
    def save_slider(self, slider: Slider, folder: Path) -> Path:
        """Write a slider into ``folder`` in the layout that the model's own library loads; returns where it is."""

    @abstractmethod
    def usage(self, slider: Slider, saved: Path) -> list[str]:
        """Lines that say how to load the slider in the model's own library."""

    def complete(self, state: TensorBatch, conditioning: TensorBatch) -> TensorBatch:
        """A state with what the frozen model must be asked before anyone else is; most states need nothing."""
        return state

    def weight(self, state: TensorBatch) -> Tensor | None:
        """How much each position of a prediction counts, for every dimension but the last; None: all the same."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what predicts; what is trained or fitted on it is float32 at least."""
        return next(self.get_submodule(self.predicting_modules[0]).parameters()).dtype

    def reaches(self, layer: str) -> bool:
        """Whether a prediction depends on a layer, so that a slider there could be trained."""
        return layer.split(".")[0] in {*self.conditioning_modules, *self.predicting_modules}

    def unfit(self) -> dict[str, str]:
        """What looks like a layer and cannot have a slider, with what is wrong: experts in one tensor, for example."""
        return {
            name: f"it is a tensor {tuple(p.shape)}, not a linear layer"
            for name, p in self.named_parameters()
            if p.dim() == 3 and self.reaches(name)
        }

    def _why_not(self, pattern: str) -> str:
        """What is wrong with the first unfit thing that a target finds, as a sentence; or nothing."""
        for name, why in self.unfit().items():
            if re.search(pattern, name):
                return f"{name} cannot have a slider: {why}. "
        return ""

    def select_targets(self, targets: Sequence[str]) -> list[str]:
        """Layers for a slider: each target is the name of a group or a regular expression over layer names.

        Raises:
            SliderError: a target that is neither a group nor matches a layer, with the groups and the nearest layers.
        """
        names = [name for name in editable_modules(self) if self.reaches(name)]
        groups = self.target_groups()
        chosen: set[str] = set()
        for target in targets:
            if (group := groups.get(target)) is None:
                try:
                    chosen.update(select_modules(self, [target], names))
                except SliderError as error:
                    try:
                        why = self._why_not(target)
                    except re.error:  # which is what the error says
                        why = ""
                    raise SliderError(f"{error}. {why}Groups of this model: {', '.join(groups)}") from None
                continue
            found = select_modules(self, group.include, names)
            chosen.update(name for name in found if not any(re.search(pattern, name) for pattern in group.exclude))
        return [name for name in names if name in chosen]


def _given(tensor: Tensor) -> Tensor:
    return tensor


Model = TypeVar("Model", bound=AbstractBackbone)


class DiffusionBackbone(AbstractBackbone):
    """A model that makes a picture by following its predictions from noise."""

    modality = "image"
    space = "noise or velocity"

    def save_slider(self, slider: Slider, folder: Path) -> Path:
        file = folder / f"{slider.name}.safetensors"
        diffusers.save(slider, file)
        return file

    def usage(self, slider: Slider, saved: Path) -> list[str]:
        return [
            f"pipe.load_lora_weights({str(saved)!r}, adapter_name={slider.name!r})",
            f"pipe.set_adapters([{slider.name!r}], [1.0])",
        ]

    @abstractmethod
    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width of pictures in pixels: what is asked for, otherwise the model's own.

        Raises:
            SliderError: the model has no pictures of this size; with the nearest that it has.
        """

    @abstractmethod
    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Where trajectories begin: a row for each seed, the same whatever stands in the other rows.

        Args:
            seeds: of the rows.
            height: of the pictures in pixels; the model's own if not given.
            width: likewise.

        Raises:
            SliderError: the model has no pictures of this size.
        """

    @abstractmethod
    def trajectory(self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int]) -> Iterator[TensorBatch]:
        """The states that the model visits when ``predict`` is followed for ``steps`` steps from ``start``.

        Yields ``calls(steps) + 1`` states: those that ``predict`` is asked about, each at the time at which it really
        is, and the finished one.  Nothing is predicted before the next state is asked for.

        Args:
            predict: is followed.
            start: what `start` gave for these seeds.
            steps: of sampling.
            seeds: of the rows: where steps add noise, each row's is its own, whatever stands in the other rows.

        Raises:
            SliderError: the model cannot make so many steps.
        """

    def calls(self, steps: int) -> int:
        """How often a trajectory of so many steps asks its predictor: once a step, unless the model says otherwise."""
        return steps

    @abstractmethod
    def decode(self, finished: TensorBatch) -> Tensor:
        """Pictures ``[n, 3, h, w]`` in [-1, 1] of finished states."""


def of_class(backbone: AbstractBackbone, wanted: type[Model], who: str, instead: str) -> Model:
    """A backbone, if it is one that somebody is made for.

    Args:
        backbone: loaded or not.
        wanted: class of the backbones that it may be.
        who: needs it, with a verb, such as ``Pool walks through``.
        instead: what to do.

    Raises:
        SliderError: it is another.
    """
    if not isinstance(backbone, wanted):
        is_one = f"{backbone.base_model} is a {type(backbone).__name__}"
        raise SliderError(f"{who} a {wanted.__name__}, but {is_one}; {instead}")
    return backbone


def guided(backbone: AbstractBackbone, prompt: TensorBatch, empty: TensorBatch, guidance: float) -> Predictor:
    """Classifier-free guidance (Ho & Salimans 2022): ``y(empty) + guidance (y(prompt) - y(empty))``, in one call.

    With ``guidance`` 1 it is the plain prediction, and the empty half is not computed.
    """
    if guidance == 1:
        return lambda state: backbone.predict(state, prompt)

    both = {name: torch.cat([empty[name], prompt[name]]) for name in prompt}

    def predict(state: TensorBatch) -> Tensor:
        doubled = {name: torch.cat([value, value]) for name, value in state.items()}
        without, with_prompt = backbone.predict(doubled, both).chunk(2)
        return without + guidance * (with_prompt - without)

    return predict
