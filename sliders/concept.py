"""What a slider is about."""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from sliders.errors import SliderError

BETWEEN = "\n\n"
"""Between an instruction and the user's message, in one prompt for a language model."""


@dataclass(frozen=True)
class Measure:
    """How an evaluation reads the concept off: what the judge should look at, and prompts that leave it open.

    Args:
        attribute: of pictures the judge's head, such as ``expression``; of texts the score, such as ``sentiment``.
        prompts: a text file with one held-out prompt a line; none of them names the attribute.
        value: of pictures, what the dial's positive side should make more likely, such as ``happy``.
    """

    attribute: str
    prompts: Path
    value: str = ""


@dataclass(frozen=True)
class Wording:
    """A concept in words for a model of another kind than the concept's own words are for; see `Concept`."""

    positives: list[str]
    negatives: list[str]
    target: str = ""
    contexts: list[str] | str | None = None
    preserve: list[str] | str | None = None
    measure: Measure | None = None


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines and lines that start with # are left out."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise SliderError(f"cannot read the prompts {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SliderError(f"{file} is not text in UTF-8: {error}") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise SliderError(f"{file} holds no prompts")
    return prompts


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
        modality: what the words above are for, ``image`` or ``text``.
        text: the same concept in words for a language model, where those above are for pictures.
    """

    name: str
    target: str
    positives: list[str]
    negatives: list[str]
    contexts: list[str] | str | None = None
    preserve: list[str] | str | None = None
    measure: Measure | None = None
    modality: Literal["image", "text"] = "image"
    text: Wording | None = None

    def __post_init__(self) -> None:
        for field in ("name", "target"):
            if not isinstance(getattr(self, field), str):
                raise SliderError(f"concept {self.name!r}: {field!r} is not text; put quotes around it")
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise SliderError(f"concept name {self.name!r}: use letters, digits, '-' and '_' (it names files)")
        if self.modality not in ("image", "text"):
            raise SliderError(f"concept {self.name!r}: 'modality' is {self.modality!r}; it must be image or text")
        for field in ("contexts", "preserve"):
            if isinstance(file := getattr(self, field), str):
                try:
                    object.__setattr__(self, field, read_prompts(Path(file)))
                except SliderError as error:
                    raise SliderError(f"{field!r}, neither a list nor a text file: {error}") from None
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
        return [
            (
                self.target + between + c,
                [p + between + c for p in self.positives],
                [n + between + c for n in self.negatives],
            )
            for c in (self.contexts or [""])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for metadata."""
        plain = asdict(self)
        for part in (plain, plain["text"] or {}):
            if part.get("measure") is not None:
                part["measure"]["prompts"] = str(part["measure"]["prompts"])
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any], where: str = "concept") -> "Concept":
        """The inverse of `to_dict`; an unknown or missing key is an error that names it."""
        plain = _arguments(cls, plain, where)
        _read_measure(plain, where)
        if plain.get("text") is not None:
            words = _arguments(Wording, plain["text"], f"{where}: text")
            _read_measure(words, f"{where}: text")
            plain["text"] = Wording(**words)
        try:
            return cls(**plain)
        except SliderError as error:
            raise SliderError(f"{where}: {error}") from None

    @classmethod
    def load(cls, file: Path) -> "Concept":
        """Read a concept's YAML file."""
        try:
            plain = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SliderError(f"cannot read the concept {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SliderError(f"{file} is not text in UTF-8: {error}") from error
        except yaml.YAMLError as error:
            raise SliderError(f"{file} is not YAML: {error}") from error
        return cls.from_dict(plain, str(file))


def _read_measure(plain: dict[str, Any], where: str) -> None:
    """Put a `Measure` where a mapping stands."""
    if plain.get("measure") is None:
        return
    measure = _arguments(Measure, plain["measure"], f"{where}: measure")
    if wrong := [key for key, value in measure.items() if not isinstance(value, str)]:
        raise SliderError(f"{where}: measure: {wrong[0]!r} is not text; put quotes around it")
    plain["measure"] = Measure(**{**measure, "prompts": Path(measure["prompts"])})


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
