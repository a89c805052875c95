"""What commands open: the sliders that they are given, and the model that these are for."""

from collections.abc import Sequence
from typing import Any

from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.choice import choose
from sliders.backbones.precision import Precision
from sliders.cli.defaults import one_each
from sliders.errors import SliderError
from sliders.formats.given import Given
from sliders.formats.metadata import check_base
from sliders.media.base import Medium
from sliders.runtime.attach import check_names


def read(files: Sequence[Given]) -> list[NamedDial]:
    """The sliders of files.

    Raises:
        SliderError: one cannot be read, or two have one name.
    """
    dials = [file.load() for file in files]
    check_names(dials)
    return dials


def model_for(
    files: Sequence[Given],
    dials: Sequence[NamedDial],
    base: str | None,
    backbone: object,
    device: str | None,
    dtype: Precision | None,
) -> AbstractBackbone:
    """The model of these sliders, or the one that is asked for instead; it is not loaded yet."""
    model = choose(dials, [file.path for file in files], base, backbone)
    model.place(device, dtype)
    return model


def load(model: AbstractBackbone, dials: Sequence[NamedDial], any_base: bool) -> None:
    """Read a model, and see that it is the one that the sliders were made for."""
    model.load()
    for dial in () if any_base else dials:
        check_base(dial, model)


def positions(dials: Sequence[NamedDial], dial: float | list[float]) -> dict[str, float]:
    """A position for every slider by its name; one number turns them all.

    Raises:
        SliderError: there are several numbers, but not one for each.
    """
    return {one.name: at for one, at in zip(dials, one_each(dial, dials), strict=True)}


def settings_for(medium: Medium[Any, Any], model: AbstractBackbone, **given: object) -> Any:
    """How a medium is sampled, of the flags that are for one medium alone.

    Args:
        medium: of the model.
        model: for errors.
        given: flags; None or False where one is not given.

    Raises:
        SliderError: one that is given is for another medium.
    """
    for flag, value in given.items():
        if value not in (None, False) and flag not in medium.flags:
            theirs = ", ".join(f"--{name}" for name in medium.flags)
            raise SliderError(
                f"--{flag} means nothing to {model.base_model}, whose modality is {model.modality}; its own flags are "
                f"{theirs}"
            )
    return given[medium.flags[0]]
