"""A folder with two sliders on one dial: `hinge.json` names the side below 0 and the side above.

No LoRA has another direction below 0 than above, so that no single file holds a hinge.  Each side is a whole slider
that its own client loads: ``left`` for dials below 0, ``right`` for those above.
"""

import json
from collections.abc import Callable
from pathlib import Path

from sliders.algebra.slider import Hinge, Slider
from sliders.errors import SliderError
from sliders.files import read_json, write_text

MANIFEST = "hinge.json"
_SCHEMA = "sliders.hinge/1"


def is_hinge(path: Path) -> bool:
    """Whether a folder holds a hinge."""
    return (path / MANIFEST).is_file()


def sides(folder: Path) -> tuple[str, Path, Path]:
    """The hinge's name, and where its left and its right slider are.

    Raises:
        SliderError: the manifest is malformed or names what is not there.
    """
    file = folder / MANIFEST
    said = read_json(file, "manifest of a hinge")
    try:
        if said["schema"] != _SCHEMA:
            raise SliderError(f"{file} has the schema {said['schema']!r}; this version reads {_SCHEMA!r}")
        names = str(said["left"]), str(said["right"])
        found = str(said["name"]), folder / names[0], folder / names[1]
    except (KeyError, TypeError) as error:
        raise SliderError(f"{file} is not the manifest of a hinge: {error}") from error
    if outside := [name for name in names if name in ("", ".", "..") or "\0" in name or set(name) & {"/", "\\"}]:
        raise SliderError(
            f"{file}: the side {outside[0][:80]!r} is no name of a file beside it; a hinge's sides lie there"
        )
    if missing := [path for path in found[1:] if not path.exists()]:
        raise SliderError(f"{file} names {missing[0].name}, which is not there")
    return found


def save(hinge: Hinge, folder: Path, write: Callable[[Slider, Path], None], suffix: str) -> None:
    """Write both sides and then the manifest, which makes the folder a hinge.

    Args:
        hinge: what to write.
        folder: new, or one that holds a hinge.
        write: how a side is written.
        suffix: of the sides' names.

    Raises:
        SliderError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not is_hinge(folder):
        raise SliderError(f"{folder} is there and holds no hinge; give another place or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    names = {"left": f"left{suffix}", "right": f"right{suffix}"}
    for side, slider in (("left", hinge.left), ("right", hinge.right)):
        write(slider, folder / names[side])
    said = {"schema": _SCHEMA, "name": hinge.name, **names}
    said["means"] = "the dial's negative positions turn 'left', the positive ones turn 'right'"
    write_text(folder / MANIFEST, json.dumps(said, indent=1) + "\n")
