"""One safetensors file with any edit of the affine monoid, as its factors.

Keys are ``<module>.<left, right or shift>.<B or A>``; a factor that changes nothing is left out.  ``sliders.edit`` in
the metadata is the version of this layout, ``sliders.shapes`` the shapes of the layers' weights.  An edit that only
adds to weights is a slider, and is read as one.
"""

import json
import math
from pathlib import Path

from torch import Tensor

from sliders.algebra.edit import Affine, Factored, Translation
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Interpolated, Slider
from sliders.errors import SliderError
from sliders.formats import tensors

SCHEMA_VERSION = "1"
_PARTS = ("left", "right", "shift")


def save(name: str, edit: Factored, file: Path, metadata: dict[str, str]) -> None:
    """Write an edit; the file appears whole or not at all.

    Args:
        name: what to call it.
        edit: it has to change something.
        file: ``.safetensors``.
        metadata: what is known of it (method, base model).

    Raises:
        SliderError: it changes nothing, or the file has another ending.
    """
    state: dict[str, Tensor] = {}
    for module, element in edit.elements().items():
        for part in _PARTS:
            factors: LowRank = getattr(element, part)
            if factors.rank:
                state |= {f"{module}.{part}.B": factors.B, f"{module}.{part}.A": factors.A}
    if not state:
        raise SliderError(f"edit {name!r} changes no layer, so that there is nothing to write")
    check_place(file)
    shapes = {module: element.shape for module, element in edit.elements().items()}
    said = {"sliders.edit": SCHEMA_VERSION, "sliders.name": name, "sliders.shapes": json.dumps(shapes)}
    tensors.write(state, file, {**metadata, **said})


def check_place(file: Path) -> None:
    """Refuse to write an edit there.

    Raises:
        SliderError: the file has another ending than an edit's.
    """
    if file.suffix != ".safetensors":
        raise SliderError(f"an edit is one .safetensors file, and {file} does not end so")


def is_edit(file: Path) -> bool:
    """Whether a file says that it is an edit."""
    return "sliders.edit" in tensors.metadata_of(file)


def modality(file: Path) -> str:
    """What the models make that an edit is for; pictures, where it does not say."""
    return tensors.metadata_of(file).get("sliders.modality", "image")


def load(file: Path) -> Slider | Interpolated:
    """Read an edit as a dial: at 1 it is the edit, at 0 nothing.

    Raises:
        SliderError: the file is missing, corrupt, of another version, or holds something else.
    """
    metadata, state = tensors.read(file)
    tensors.check_finite(state, file)
    if metadata.get("sliders.edit") != SCHEMA_VERSION:
        found = metadata.get("sliders.edit")
        raise SliderError(f"{file} is no edit of version {SCHEMA_VERSION}: its metadata says sliders.edit {found!r}")
    try:
        shapes = {
            str(module): tuple(map(int, shape)) for module, shape in json.loads(metadata["sliders.shapes"]).items()
        }
        if wrong := [
            module
            for module, shape in shapes.items()
            if len(shape) not in (2, 4) or not 1 <= min(shape) <= max(shape) < 2**31
        ]:
            raise ValueError(f"that of {wrong[0]!r} is none of a weight")
    except KeyError as error:
        raise SliderError(f"{file} does not say the shapes of the layers that it edits: it has no {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SliderError(f"{file}: its sliders.shapes is malformed: {error}") from error
    known = {f"{module}.{part}.{side}" for module in shapes for part in _PARTS for side in "BA"}
    if foreign := sorted(set(state) - known):
        raise SliderError(f"{file} holds {foreign[0]!r}, which is no factor of an edit")
    elements: dict[str, Element] = {}
    for module, shape in shapes.items():
        left, right, shift = (_factors(state, f"{module}.{part}", file) for part in _PARTS)
        width = next((part.shape[1] for part in (right, shift) if part is not None), math.prod(shape[1:]))
        squares = (shape[0], shape[0]), (width, width), (shape[0], width)
        parts = [p or LowRank.zero(s) for p, s in zip((left, right, shift), squares, strict=True)]
        try:
            elements[module] = Element(shape, *parts)
        except SliderError as error:
            raise SliderError(f"{file}: {module!r}: {error}") from None
    name = metadata.get("sliders.name", file.stem)
    if any(e.left.rank or e.right.rank or e.has_bias for e in elements.values()):
        return Interpolated(name, Affine(elements), metadata)
    updates = {module: LowRank(e.shift.B, e.shift.A, e.shape) for module, e in elements.items()}
    return Slider(name, Translation(updates), metadata)


def _factors(state: dict[str, Tensor], key: str, file: Path) -> LowRank | None:
    """The factors under a key, or None where there are none."""
    up, down = state.get(f"{key}.B"), state.get(f"{key}.A")
    if up is None and down is None:
        return None
    if up is None or down is None or up.dim() != 2 or down.dim() != 2 or up.shape[1] != len(down):
        raise SliderError(f"{file}: the factors B and A of {key!r} do not fit each other")
    return LowRank(up, down, (len(up), down.shape[1]))
