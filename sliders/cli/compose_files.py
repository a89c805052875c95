"""What `sliders compose` does with the sliders that it is given."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from sliders import formats
from sliders.algebra.compose import Composition, combine, compress, orthogonalise, survival
from sliders.algebra.edit import Translation
from sliders.algebra.merges import dare, knots, ties
from sliders.algebra.slider import Hinge, Interpolated, NamedDial, Slider
from sliders.cli.compose_options import How, Merging
from sliders.cli.defaults import one_each
from sliders.console import say
from sliders.errors import SliderError
from sliders.files import check_place
from sliders.formats.given import Given
from sliders.formats.metadata import check_name, check_one_base, describe_composed
from sliders.report.drawing import dial_label

_ASKED: dict[str, tuple[str, ...]] = {
    "compress": ("rank", "total_rank", "tolerance"),
    "orthogonalise": ("by",),
    "ties": ("keep", "rank", "scale"),
    "dare": ("drop", "rank", "seed"),
    "knots": ("keep", "scale"),
}
"""Which of the numbers each way to compose reads; they are kept in the result's metadata."""


def merge(parts: Sequence[tuple[Slider | Hinge, float]], how: How, by: Merging) -> Composition:
    """One update out of dials at their positions.

    Raises:
        SliderError: it is a way that asks for other parts or numbers.
    """
    updates = [dial.at(position) for dial, position in parts]
    exact = combine(parts)
    rank = by.rank if by.rank is not None else max((update.rank for update in exact.values()), default=0)
    if how == "sum":
        return Composition(exact, 0.0, dict.fromkeys(exact, 0.0), survival(exact, updates))
    if how == "compress":
        made = compress(exact, rank=by.rank, total_rank=by.total_rank, tolerance=by.tolerance)
        return replace(made, survived=survival(made.update, updates))
    if how == "ties":
        return ties(updates, by.keep, rank, by.scale)
    if how == "dare":
        return dare(updates, by.drop, rank, by.seed)
    if how == "knots":
        return knots(updates, by.keep, by.scale)
    first, *others = (Slider(dial.name, update) for (dial, _), update in zip(parts, updates, strict=True))
    made = orthogonalise(first, others, by.by)
    return replace(made, survived=survival(made.update, updates))


def put_together(
    files: Sequence[Given],
    out: Path,
    dial: float | list[float],
    how: How,
    by: Merging,
    name: str | None,
    any_base: bool,
) -> None:
    """Make one slider of several, write it and say what it keeps of them; see `sliders.cli.compose.compose_sliders`."""
    if not files:
        raise SliderError("there is nothing to compose; give at least one slider")
    dials, paths, called = one_each(dial, files), [file.path for file in files], name or out.stem
    check_name(called, "--name" if name else f"--out {out}: the name")
    check_place(out, folder=out.suffix != ".safetensors")
    parts = [_composable(file.load(), file.path) for file in files]
    if not any_base:
        check_one_base(parts)
    if how == "orthogonalise" and len(parts) < 2:
        raise SliderError("--how orthogonalise keeps the first slider clear of the others; give at least two")
    said: dict[str, Any] = {"how": how, **{key: getattr(by, key) for key in _ASKED.get(how, ())}}
    said["parts"] = [
        {"name": part.name, "dial": position, "file": path.name, "sha256": _hash(path)}
        for part, position, path in zip(parts, dials, paths, strict=True)
    ]
    if how == "hinge":
        formats.save_like(_hinge(called, parts, dials, said), out, paths)
        say(
            f"hinge   {out}",
            f"below 0 it is {parts[0].name}, above 0 {parts[1].name}. No single LoRA bends at 0: the folder holds two, "
            "which other programs load one at a time; generate, evaluate, bake and compose take it as one dial.",
        )
        return
    made = merge(list(zip(parts, dials, strict=True)), how, by)
    kept = Translation({module: update for module, update in made.update.items() if update.rank})
    said |= {"error": made.error, "survived": list(made.survived)}
    known = parts[0].metadata if how == "orthogonalise" else {}
    known = {key: value for key, value in known.items() if key != "sliders.effect"}  # measured of the whole slider
    result = Slider(called, kept, {**known, **describe_composed(called, said, parts)})
    formats.save_like(result, out, paths)
    say(_table(result, made, said), f"slider  {out}")


def _composable(dial: NamedDial, path: Path) -> Slider | Hinge:
    """A dial, if all that it does is to add to weights."""
    if isinstance(dial, Interpolated):
        raise SliderError(
            f"{path} is an edit that does more than add to weights, so that no slider holds a composition with it; "
            "bake it into a model, or compose it in Python with @"
        )
    return dial


def _hinge(name: str, parts: Sequence[Slider | Hinge], dials: Sequence[float], said: dict[str, Any]) -> Hinge:
    sides = [part for part in parts if isinstance(part, Slider)]
    if len(sides) != 2 or len(parts) != 2:
        raise SliderError(f"--how hinge takes two sliders, the left and the right; given are {len(parts)} dials")
    made = []
    for side, slider, position in zip(("left", "right"), sides, dials, strict=True):
        known = dict(slider.metadata) if position == 1 else {}
        known |= {"sliders.composed": describe_composed(name, {**said, "side": side}, parts)["sliders.composed"]}
        made.append(Slider(slider.name, slider.at(position), {**describe_composed(slider.name, said, parts), **known}))
    return Hinge(name, *made)


def _hash(path: Path) -> str:
    """Of the content of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:32]


def _table(made: Slider, composition: Composition, said: dict[str, Any]) -> Table:
    ranks = [update.rank for update in made.update.values()]
    worst = max(composition.errors, key=lambda module: composition.errors[module], default="")
    caption = f"{len(ranks)} layers, ranks {min(ranks, default=0)} to {max(ranks, default=0)}; "
    caption += f"relative error {composition.error:.3g}"
    if composition.error:
        caption += f", at most {composition.errors[worst]:.3g} in {worst}"
    table = Table(title=f"{made.name}: {said['how']}", title_justify="left", caption=caption, caption_justify="left")
    for heading in ("slider", "dial", "survived"):
        table.add_column(heading, justify="left" if heading == "slider" else "right")
    for part, share in zip(said["parts"], composition.survived, strict=True):
        table.add_row(part["name"], dial_label(part["dial"]), f"{share:.3f}")
    return table
