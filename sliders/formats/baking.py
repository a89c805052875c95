"""A model's folder once more, with an edit in its weights and everything else as it was.

Files are copied; of those that hold an edited weight, that weight is computed from the stored numbers and rounded once,
to the precision that it is stored in.  Every variant of the weights is edited, and weights in other formats, which
would be the unedited ones, are left out.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sliders.algebra.edit import Edit
from sliders.batch import widened
from sliders.errors import SliderError
from sliders.files import read_json
from sliders.formats.checkpoint import tied
from sliders.formats.skeleton import INDEX, skeletons
from sliders.formats.stored import Place, places, variants
from sliders.runtime.layers import as_edited

_OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")
_CONFIG = "config.json"
_LOST = 0.1  # of a change, from which it is told


@dataclass
class Baked:
    """What was written.

    Args:
        lost: of each edited weight the size of what its precision rounded away, relative to its change; the most over
            the variants.
        left_out: files of weights that would have been the unedited ones.
    """

    lost: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What whoever bakes should know."""
        told = [f"left out {file}, which holds the weights without the edit" for file in self.left_out]
        if poor := {name: lost for name, lost in self.lost.items() if lost > _LOST}:
            worst = max(poor, key=lambda name: poor[name])
            told.append(
                f"rounded  to the files' precision, which loses more than {_LOST:.0%} of the change in {len(poor)} of "
                f"{len(self.lost)} weights ({poor[worst]:.0%} in {worst}); a model in float32 files would keep it"
            )
        return told


def write_edited(origin: Path, edit: Edit, out: Path) -> Baked:
    """Copy a model's folder with an edit in its weights.

    Args:
        origin: of a diffusers pipeline, or of a transformers language model, in safetensors.
        edit: its modules are called as in a loaded model.
        out: the new folder, which is not there.

    Raises:
        SliderError: an edited layer is not in the files as one tensor, or gets a bias that the model has no place for.
    """
    parts: dict[str, list[str]] = {}
    for module in edit.modules:
        component, _, inside = module.partition(".")
        parts.setdefault(component, []).append(inside)
    pipeline = (origin / INDEX).is_file()
    folders = {component: origin / component if pipeline else origin for component in parts}
    made = Baked()
    models = skeletons(origin) if parts else {}
    rewritten: dict[Path, dict[str, Tensor]] = {}
    untied: list[Path] = []
    used: set[Path] = set()
    for component, modules in parts.items():
        model = models.get(component)
        if model is None:
            raise SliderError(f"{origin} holds no {component!r} that diffusers or transformers know")
        for files in variants(folders[component]).values():
            part = _Part(component, model, files)
            used |= set(files)
            for module in modules:
                name = f"{component}.{module}"
                made.lost[name] = max(made.lost.get(name, 0.0), part.edit(module, edit))
            for file, tensors in part.changed.items():
                rewritten.setdefault(file, {}).update(tensors)
            if part.untied:
                untied.append(folders[component])
    for file in sorted(path for path in origin.rglob("*") if path.is_file()):
        name = file.relative_to(origin)
        if any(piece.startswith(".") for piece in name.parts):
            continue
        if _is_unedited(file, set(folders.values()), used, origin, pipeline):
            made.left_out.append(str(name))
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if file in rewritten:
            _rewrite(file, rewritten[file], out / name)
        else:
            shutil.copyfile(file, out / name)
    _index_new(rewritten, origin, out)
    for folder in dict.fromkeys(untied):
        _untie(out / folder.relative_to(origin))
    return made


class _Part:
    """One variant of a component's weights while it is edited."""

    def __init__(self, component: str, model: nn.Module, files: Sequence[Path]) -> None:
        self.component, self.model, self.files = component, model, files
        self.places: dict[str, Place] = places(model, files)
        self.shared = {name: names for names in tied(model) for name in names}
        self.changed: dict[Path, dict[str, Tensor]] = {}
        self.untied = False

    def edit(self, module: str, edit: Edit) -> float:
        """Put the edit into one layer; returns what is lost to rounding, relative to the change."""
        try:
            layer = self.model.get_submodule(module)
        except AttributeError:
            raise SliderError(f"the edit changes '{self.component}.{module}', which this model does not have") from None
        weight, bias = f"{module}.weight", f"{module}.bias"
        place = next((self.places[n] for n in [weight, *self.shared.get(weight, [])] if n in self.places), None)
        if place is None:
            raise SliderError(
                f"{self.files[0].parent} does not store {self.component}.{module} as one tensor; keep the edit as a "
                "file and turn it with --slider"
            )
        stored, own = place.read(), self.places.get(bias)
        before = as_edited(layer, widened(stored))
        after, shift = edit.apply_layer(
            f"{self.component}.{module}", before, None if own is None else widened(own.read())
        )
        if shift is not None:
            if own is None:
                raise SliderError(
                    f"the edit makes '{self.component}.{bias}', for which a checkpoint has no place; keep it as a file "
                    "and turn it with --slider"
                )
            self._put(own, own.key, shift.to(own.read().dtype))
        rounded = as_edited(layer, after).to(stored.dtype)
        if not rounded.isfinite().all():
            raise SliderError(
                f"the edit makes numbers in {self.component}.{weight} that {str(stored.dtype)[6:]}, in which "
                f"{place.file} is stored, has no place for; turn the dial less far, or bake into a model in "
                "float32"
            )
        if weight in self.shared:
            self._split(weight, place, stored, rounded)
        else:
            self._put(place, place.key, rounded)
        change = float((after - before).double().norm())
        return float((as_edited(layer, rounded).double() - after.double()).norm()) / change if change else 0.0

    def _put(self, place: Place, key: str, tensor: Tensor) -> None:
        self.changed.setdefault(place.file, {})[key] = tensor.contiguous()

    def _split(self, weight: str, place: Place, stored: Tensor, edited: Tensor) -> None:
        """Of several that share a weight change one: each is stored by itself then."""
        self.untied = True
        for name in self.shared[weight]:
            has = self.places.get(name)
            self._put(has or place, has.key if has else name, edited if name == weight else stored.clone())


def _is_unedited(file: Path, edited: set[Path], used: set[Path], origin: Path, pipeline: bool) -> bool:
    """Whether a file holds weights as they were, which are now another model's: in another format or by another name.

    Of a pipeline these lie beside an edited component's files or in the pipeline's own folder; of a language model
    anywhere, such as in ``original/``.
    """
    near = file.parent in edited or file.parent == origin if pipeline else bool(edited)
    weights = file.suffix in (*_OTHER_WEIGHTS, ".safetensors") and file.name != "training_args.bin"
    return bool(edited) and near and weights and file not in used


def _rewrite(file: Path, tensors: Mapping[str, Tensor], out: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        state = {key: opened.get_tensor(key) for key in opened.keys() if key not in tensors}  # noqa: SIM118
    save_file(state | dict(tensors), out, metadata)


def _index_new(rewritten: Mapping[Path, Mapping[str, Tensor]], origin: Path, out: Path) -> None:
    """Name what was added to a shard in its index."""
    for file, tensors in rewritten.items():
        for index in file.parent.glob("*.safetensors.index*.json"):
            target = out / index.relative_to(origin)  # which may name more already than the one it was copied from
            said = read_json(target)
            if file.name not in said["weight_map"].values():
                continue
            new = {key: tensor for key, tensor in tensors.items() if key not in said["weight_map"]}
            said["weight_map"] |= dict.fromkeys(new, file.name)
            if "total_size" in said.get("metadata", {}):
                said["metadata"]["total_size"] += sum(tensor.nbytes for tensor in new.values())
            if new:
                target.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _untie(folder: Path) -> None:
    """Let a model's output layer have a weight of its own."""
    said = read_json(folder / _CONFIG)
    for part in (said, said.get("text_config")):
        if isinstance(part, dict):
            part["tie_word_embeddings"] = False
    (folder / _CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    if any(tied(model) for model in skeletons(folder).values() if model is not None):
        raise SliderError(f"{folder} holds a model whose output layer cannot have a weight of its own; leave it out")
