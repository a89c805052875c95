"""What a slider is about."""

import os
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sliders import peers
from sliders.errors import SliderError
from sliders.files import read_lines, read_yaml

BETWEEN = "\n\n"
"""Between an instruction and the user's message, in one prompt for a language model."""


@dataclass(frozen=True)
class Measure:
    """How an evaluation reads the concept off: what the judge should look at, and prompts that leave it open.

    Args:
        attribute: of pictures the judge's head, such as ``expression``; of texts the score, such as ``sentiment``.
        prompts: held-out prompts, none of which names the attribute; a list, or a text file with one a line.  None
            where a slider's file, of an earlier version, does not say them.
        value: of pictures, what the dial's positive side should make more likely, such as ``happy``.

    Raises:
        SliderError: there are no prompts, or no such file.
    """

    attribute: str
    prompts: list[str] | Path | str | None
    value: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str | Path):
            object.__setattr__(self, "prompts", read_prompts(Path(self.prompts)))
        if self.prompts is not None and not _are_prompts(self.prompts):
            raise SliderError(f"measure: 'prompts' is {self.prompts!r}; give a list of prompts, or a text file of them")


@dataclass(frozen=True)
class Wording:
    """A concept in words for a model of another kind than the concept's own words are for; see `Concept`."""

    positives: list[str]
    negatives: list[str]
    target: str = ""
    contexts: list[str] | Path | str | None = None
    preserve: list[str] | Path | str | None = None
    measure: Measure | None = None


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines and lines that start with # are left out.

    Raises:
        SliderError: it cannot be read, or holds none.
    """
    lines = [line.strip() for line in read_lines(file, "prompts")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise SliderError(f"{file} holds no prompts")
    return prompts


def _are_prompts(said: Any) -> bool:
    """Whether it is a list of texts with something in it."""
    return isinstance(said, list) and bool(said) and all(isinstance(prompt, str) for prompt in said)


@dataclass(frozen=True)
class Concept:
    """A direction in what a model knows, in words.

    A model of pictures takes target, positives and negatives as prompts.  A model of language takes them as
    instructions in front of one and the same user message; the messages are the contexts.

    Args:
        name: names the slider and its files.
        target: the prompt whose prediction the slider moves.
        positives: prompts of what the positive side shows; their predictions are averaged.
        negatives: prompts of the opposite; averaged too, since one opposite is often not the opposite.
        contexts: what is appended to target, positives and negatives alike, one drawn for each state, so that the
            direction does not depend on what else is in the prompt (the preserved concepts of Concept Sliders, eq. 8);
            for language the user messages.  A list, or a text file with one a line.
        preserve: prompts whose predictions must not move at any dial; a list, or a text file with one a line.
        measure: how to tell whether it worked.
        modality: what the words above are for: ``image``, ``text``, or what else is a file of `sliders.media`.
        text: the same concept in words for a language model, where those above are for pictures.
    """

    name: str
    target: str
    positives: list[str]
    negatives: list[str]
    contexts: list[str] | Path | str | None = None
    preserve: list[str] | Path | str | None = None
    measure: Measure | None = None
    modality: str = "image"
    text: Wording | None = None

    def __post_init__(self) -> None:
        for field in ("name", "target"):
            if not isinstance(getattr(self, field), str):
                raise SliderError(f"concept {self.name!r}: {field!r} is not text; put quotes around it")
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise SliderError(f"concept name {self.name!r}: use letters, digits, '-' and '_' (it names files)")
        if not _has_medium(self.modality):
            raise SliderError(f"concept {self.name!r}: 'modality' is {self.modality!r}; it must be image or text")
        for field in ("contexts", "preserve"):
            if isinstance(file := getattr(self, field), str | Path):
                object.__setattr__(self, field, _prompts_in(str(file), repr(field), Path()))
        for field in ("positives", "negatives", "contexts", "preserve"):
            prompts = getattr(self, field)
            if field in ("contexts", "preserve") and prompts is None:
                continue
            if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
                raise SliderError(f"concept {self.name!r}: {field!r} is {prompts!r}; give a list of prompts")
        for field in ("positives", "negatives"):
            if not getattr(self, field):
                raise SliderError(f"concept {self.name!r}: {field!r} is empty; give at least one prompt")
        if sorted(self.positives) == sorted(self.negatives):
            raise SliderError(f"concept {self.name!r}: positives and negatives are the same, so there is no direction")
        if self.modality == "text" and (
            split := [text for text in (self.target, *self.positives, *self.negatives) if BETWEEN in text]
        ):
            raise SliderError(
                f"concept {self.name!r}: {split[0][:40]!r}... has a blank line, which stands between an instruction "
                "and the user's message; leave it out"
            )
        if self.text is not None:
            if self.modality == "text":
                raise SliderError(f"concept {self.name!r}: its modality is text already, so 'text' has no meaning")
            try:
                words = self.worded("text")
            except SliderError as error:
                raise SliderError(f"in its section 'text': {error}") from None
            object.__setattr__(self, "text", replace(self.text, contexts=words.contexts, preserve=words.preserve))

    def worded(self, modality: str) -> "Concept":
        """The concept in the words for models of this modality, and in no others.

        Raises:
            SliderError: it has none.
        """
        if modality == self.modality:
            return replace(self, text=None)
        if modality == "text" and self.text is not None:
            words = {f.name: getattr(self.text, f.name) for f in fields(Wording)}
            return replace(self, **words, modality="text", text=None)
        hint = " (a section 'text:' with positives and negatives)" if modality == "text" else ""
        raise SliderError(f"concept {self.name!r} has no words for a model of {modality}; add them{hint}")

    def in_contexts(self) -> list[tuple[str, list[str], list[str]]]:
        """(target, positives, negatives) once for every context."""
        between = BETWEEN if self.modality == "text" else ""
        assert not isinstance(self.contexts, Path | str)  # files have been read
        return [
            (
                self.target + between + c,
                [p + between + c for p in self.positives],
                [n + between + c for n in self.negatives],
            )
            for c in (self.contexts or [""])
        ]

    def heldout(self) -> list[str]:
        """The prompts that it is measured on; none where it has no measure.

        Raises:
            SliderError: it came from a slider's file that names them by a path of another machine or time.
        """
        if self.measure is None:
            return []
        if self.measure.prompts is None:
            raise SliderError(
                f"the file of {self.name!r}, of an earlier version, does not hold the prompts that it is measured on; "
                "give the concept's own file with --concept, or prompts with --prompts"
            )
        assert isinstance(self.measure.prompts, list)  # files have been read
        return list(self.measure.prompts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for metadata: the prompts themselves, whatever file they came from."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any], where: str = "concept", folder: Path | None = None) -> "Concept":
        """The inverse of `to_dict`; an unknown or missing key is an error that names it.

        Args:
            plain: the data.
            where: it stands, for errors.
            folder: what its paths are relative to.  Without one no file is read, whatever the data says.

        Raises:
            SliderError: it is no concept, or a file is missing.
        """
        plain = _arguments(cls, plain, where)
        _read_section(plain, where, folder)
        if plain.get("text") is not None:
            words = _arguments(Wording, plain["text"], f"{where}: text")
            _read_section(words, f"{where}: text", folder)
            plain["text"] = Wording(**words)
        try:
            return cls(**plain)
        except SliderError as error:
            raise SliderError(f"{where}: {error}") from None

    @classmethod
    def from_metadata(cls, plain: Any, where: str) -> "Concept":
        """The concept that a slider's file says it was trained on, which may be a stranger's: no file is read for it.

        Earlier versions kept the path of the held-out prompts; these are then not known.

        Raises:
            SliderError: it is no concept.
        """
        if isinstance(plain, dict):
            plain = _without_paths(plain)
            if isinstance(plain.get("text"), dict):
                plain["text"] = _without_paths(plain["text"])
        return cls.from_dict(plain, where)

    @classmethod
    def load(cls, file: Path) -> "Concept":
        """Read a concept's YAML file; paths in it are relative to the file.

        Raises:
            SliderError: it cannot be read, or is no concept; if it is another program's, how to write it here.
        """
        plain = read_yaml(file, "concept")
        if theirs := peers.explain(plain):
            raise SliderError(f"{file} is no concept of this package: {theirs}")
        return cls.from_dict(plain, str(file), file.parent)


def _has_medium(modality: object) -> bool:
    """Whether something is made of this kind here: whether there is a file of its name, which is not read."""
    named = isinstance(modality, str) and modality.isidentifier() and modality != "base"
    return named and find_spec(f"sliders.media.{modality}") is not None


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """A copy in which held-out prompts that are a path are not known."""
    measure = plain.get("measure")
    if not isinstance(measure, dict) or not isinstance(measure.get("prompts"), str):
        return dict(plain)
    return {**plain, "measure": {**measure, "prompts": None}}


def _read_section(plain: dict[str, Any], where: str, folder: Path | None) -> None:
    """Put prompts where their files are named, and a `Measure` where a mapping stands."""
    for field in ("contexts", "preserve"):
        if isinstance(plain.get(field), str):
            plain[field] = _prompts_in(plain[field], f"{where}: {field!r}", folder)
    if plain.get("measure") is None:
        return
    where = f"{where}: measure"
    measure = _arguments(Measure, plain["measure"], where)
    if wrong := [key for key in ("attribute", "value") if not isinstance(measure.get(key, ""), str)]:
        raise SliderError(f"{where}: {wrong[0]!r} is not text; put quotes around it")
    if isinstance(measure["prompts"], str):
        measure["prompts"] = _prompts_in(measure["prompts"], f"{where}: 'prompts'", folder)
    elif measure["prompts"] is None and folder is not None:
        raise SliderError(f"{where}: 'prompts' is empty; give a list of prompts, or a text file of them")
    try:
        plain["measure"] = Measure(**measure)
    except SliderError as error:
        raise SliderError(f"{where.removesuffix(': measure')}: {error}") from None


def _prompts_in(named: str, where: str, folder: Path | None) -> list[str]:
    """The prompts of a text file.

    Args:
        named: its path.
        where: it is named, for errors.
        folder: that the path is relative to; without one nothing is read.
    """
    if folder is None:
        raise SliderError(f"{where} is {named[:80]!r}; a file is not read for it, so give a list of prompts")
    file = folder / Path(named).expanduser()
    if not file.exists() and Path(named).is_file():
        meant = os.path.relpath(named, folder)
        raise SliderError(
            f"{where}: no file at {file}: paths in a concept's file are relative to that file; write {meant!r} for the "
            f"one at {named}"
        )
    try:
        return read_prompts(file)
    except SliderError as error:
        raise SliderError(f"{where}, neither a list nor a text file: {error}") from None


def _arguments(cls: type[Concept | Measure | Wording], plain: Any, where: str) -> dict[str, Any]:
    """A copy of ``plain`` that has what ``cls`` needs and nothing that it does not know."""
    known = [f.name for f in fields(cls)]
    if not isinstance(plain, dict):
        raise SliderError(f"{where}: expected a mapping with {', '.join(known)}")
    if unknown := [key for key in plain if key not in known]:
        raise SliderError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in plain]:
        raise SliderError(f"{where}: {missing[0]!r} is missing")
    return dict(plain)
