"""Edits that are fitted once and kept, under hashes of all that they are made from."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sliders import formats
from sliders.algebra.edit import Affine, Factored
from sliders.backbones.base import AbstractBackbone
from sliders.editors.base import Editor
from sliders.errors import SliderError
from sliders.files import read_text
from sliders.formats import edit as edit_file
from sliders.runtime.baking import baked

_NAMES_FILE = re.compile(r"[\w./-]+\.(?:txt|ya?ml)")


@dataclass(frozen=True)
class ComparedEdit:
    """An edit in the table.

    Args:
        method: whose; edits of one method are compared with each other.
        editor: fits it anew for every seed and on every other edit.
        files: instead of an editor: the file of a trained slider, and that of its twin, trained with another seed.
    """

    method: str
    editor: Editor | None = None
    files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.editor is None) == (not self.files):
            raise SliderError(f"an edit of the method {self.method!r} needs an editor, or files, and not both")


class FittedEdits:
    """The edits of a study, each fitted once and kept."""

    def __init__(self, backbone: AbstractBackbone, entries: Mapping[str, ComparedEdit], folder: Path) -> None:
        self.backbone, self.entries, self.folder = backbone, entries, folder
        self._known: dict[str, Affine] = {}

    def refits(self, name: str) -> bool:
        """Whether an edit can be fitted on another one; a file's was trained on the base."""
        return self.entries[name].editor is not None

    def has_twin(self, name: str) -> bool:
        """Whether there is one with another seed."""
        return self.refits(name) or len(self.entries[name].files) > 1

    def key(self, name: str, seed: int = 0, on: str | None = None) -> str:
        """A hash of all that a fit is made from."""
        entry = self.entries[name]
        told: dict[str, Any] = {"base": self.backbone.fingerprint()}
        if entry.editor is None:
            told["file"] = _content(entry.files[seed])
        else:
            told |= {"class": type(entry.editor).__qualname__, "seed": seed, "on": on and self.key(on, seed)}
            told["fields"] = json.loads(json.dumps(asdict(entry.editor), default=str))
            told["files"] = _mentioned(json.dumps(told["fields"]))
            folders = [value for value in vars(entry.editor).values() if isinstance(value, Path) and value.is_dir()]
            told["folders"] = [_content(folder) for folder in folders]
        return hash_of(told)

    def __call__(self, name: str, seed: int = 0, on: str | None = None) -> Affine:
        """The edit, fitted with a seed, on the base or with another edit of the same seed merged into it."""
        key, editor = self.key(name, seed, on), self.entries[name].editor
        if key not in self._known:
            file = self.folder / "edits" / f"{key}.safetensors"
            if editor is None:
                self._known[key] = _edit_in(self.entries[name].files[seed])
            elif file.is_file():
                self._known[key] = _edit_in(file)
            else:
                editor.check(self.backbone)
                with baked(self.backbone, Affine({}) if on is None else self(on, seed)):
                    edit = editor.fit(self.backbone, seed)
                edit_file.save(name, edit, file, editor.metadata(self.backbone, seed, edit.modules))
                self._known[key] = Affine(edit.elements())
        return self._known[key]


def _edit_in(file: Path) -> Affine:
    edit = formats.load_dial(file).at(1.0)
    assert isinstance(edit, Factored)
    return Affine(edit.elements())


def _content(file: Path) -> str:
    parts = sorted(file.rglob("*.safetensors")) if file.is_dir() else [file]
    parts = [part for part in parts if not any(n.startswith(".") for n in part.relative_to(file).parts)]  # half-written
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def _mentioned(text: str, folder: Path = Path()) -> dict[str, str]:
    """The content of every text file whose name stands in a text, and of those that stand in these.

    Args:
        text: to look at.
        folder: that the names are relative to; in a file they are relative to it.
    """
    found: dict[str, str] = {}
    for name in sorted(set(_NAMES_FILE.findall(text))):
        if (file := folder / name).is_file():
            inside = read_text(file)
            found |= {str(file): inside, **({} if name.endswith(".txt") else _mentioned(inside, file.parent))}
    return found


def hash_of(told: object) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
