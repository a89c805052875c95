"""What every model family offers to the rest of the package."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sliders.algebra.edit import Edit, Translation
from sliders.algebra.slider import Slider
from sliders.backbones.origin import Origin
from sliders.backbones.placement import Placement
from sliders.backbones.precision import Precision
from sliders.backbones.targets import TargetGroup, select
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.files import check_place, replacing_folder
from sliders.formats.baking import Baked, write_edited
from sliders.runtime.baking import baked
from sliders.runtime.layers import editable_modules


class AbstractBackbone(ABC, nn.Module):
    """A frozen model: what it conditions on, the states it is asked about, and what it predicts.

    A *state* and a *conditioning* are `TensorBatch`es whose names only the backbone knows.  A *prediction* is a tensor
    ``[n, ...]`` in a space where adding makes sense (noise, v, velocity, log-probabilities), and which of these it is
    nobody else knows.  The constructor does no I/O; `load` does.
    """

    placement: Placement = Placement()
    """Where `load` puts the weights, and in which precision it reads them; afterwards it says nothing more."""

    origin: Origin
    """Where the model that is in memory comes from."""

    conditioning_modules: tuple[str, ...] = ()
    """Top-level modules that `encode` runs: a slider on one of them changes the conditioning."""

    predicting_modules: tuple[str, ...] = ()
    """Top-level modules that `predict` runs.  A slider can be on these and on `conditioning_modules`, nowhere else."""

    modality: ClassVar[str]
    """Which wording of a concept speaks to it: ``image`` or ``text``."""

    space: str
    """Where predictions lie, for losses that are made for one space: one of `sliders.losses.erasure.SPACES`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor must be told beside the model to be this base again, as plain data for slider files."""
        return {}

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

    @property
    def class_path(self) -> str:
        """Its class, as a slider's file names it."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @abstractmethod
    def load(self) -> None:
        """Read the weights, frozen and in evaluation mode.  Calling it again does nothing."""

    @property
    @abstractmethod
    def base_model(self) -> str:
        """The name or folder of the model, as the user gave it."""

    def fingerprint(self, components: Iterable[str] | None = None) -> str:
        """Hashes of the weights of components (all unless given), as ``unet=...,vae=...``.

        Two models with the same one are the same base to whatever is on these components.  They are computed when they
        are first asked for; see `sliders.backbones.fingerprint`.
        """
        parts = dict(self.named_children())
        return self.origin.fingerprint(parts, parts if components is None else components)

    def old_fingerprint(self) -> str:
        """What sliders of earlier versions say of their base; see `Origin.old_fingerprint`."""
        return self.origin.old_fingerprint(dict(self.named_children()))

    @abstractmethod
    def target_groups(self) -> dict[str, TargetGroup]:
        """Named sets of layers for sliders, such as ``xattn``."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        """The conditioning of each prompt: tensors ``[n, ...]``, a row each."""

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
            if edit is not None and self.origin.folder and all(self.origin.unchanged(part) for part in touched):
                return write_edited(self._whole(self.origin.folder), edit, new)
            parameters = set(dict(self.named_parameters()))
            with baked(self, edit or Translation({})):
                if grown := set(dict(self.named_parameters())) - parameters:
                    raise SliderError(
                        f"the edit makes {min(grown)!r}, for which a checkpoint of {self.base_model} has no place; "
                        "keep it as a file and turn it with --slider"
                    )
                self.write(new)
        return Baked()

    def _whole(self, folder: Path) -> Path:
        """The folder that the model was read from, with all that belongs to it."""
        return folder

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
        """How much each position of a prediction ``[n, ..., k]`` counts, ``[n, ...]``; None: all the same."""
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

    def select_targets(self, targets: Sequence[str]) -> list[str]:
        """Layers for a slider: each target is the name of a group or a regular expression over layer names.

        Raises:
            SliderError: a target that is neither a group nor matches a layer, with the groups and the nearest layers.
        """
        names = [name for name in editable_modules(self) if self.reaches(name)]
        return select(self, targets, names, self.target_groups(), self.unfit())


Model = TypeVar("Model", bound=AbstractBackbone)


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
