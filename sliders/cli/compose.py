"""`sliders compose`: put sliders together into one."""

from pathlib import Path

from sliders.cli.compose_options import How, Merging


def compose_sliders(
    slider: Path | list[Path],
    out: Path,
    dial: float | list[float] = 1.0,
    how: How = "sum",
    merging: Merging | None = None,
    name: str | None = None,
    any_base: bool = False,
) -> None:
    """Make one slider out of several, as a file that diffusers or PEFT loads, which says what it was made of.

    ``sum`` is exact.  ``compress`` is the nearest sum of less rank.  ``orthogonalise`` is the first slider alone,
    cleared of what it shares with the others.  ``ties``, ``dare`` and ``knots`` are merges that vote or drop.
    ``hinge`` is the first below 0 and the second above: no LoRA bends, so that it is a folder with two of them and a
    manifest, which the other commands of this package take as one dial and other programs as two sliders.

    Args:
        slider: slider files (folders of language models), or hinges; NAME= before one calls it otherwise.
        out: what to write: a .safetensors file; a folder for a language model and for a hinge.
        dial: where each stands; a list for several.
        how: to put them together.
        merging: what the ways other than sum and hinge ask for.
        name: of the result; that of its file unless given.
        any_base: compose sliders that were made for different bases.
    """
    from sliders.cli.compose_files import put_together
    from sliders.formats.given import given

    put_together(given(slider, "slider"), out, dial, how, merging or Merging(), name, any_base)
