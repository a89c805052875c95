"""What a slider is about."""

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sliders.errors import SliderError


@dataclass(frozen=True)
class Measure:
    """How an evaluation reads the concept off: a judge's attribute and value, and prompts that leave it open.

    Args:
        attribute: the judge's head, such as ``expression``.
        value: the value that the dial's positive side should make more likely, such as ``happy``.
        prompts: a text file with one held-out prompt a line; none of them names the attribute.
    """

    attribute: str
    value: str
    prompts: Path


@dataclass(frozen=True)
class Concept:
    """A direction in what a model knows, in words.

    Args:
        name: names the slider and its files.
        target: the prompt whose prediction the slider moves.
        positives: prompts of what the positive side shows; their predictions are averaged.
        negatives: prompts of the opposite; averaged too, since one opposite is often not the opposite.
        contexts: phrases appended to target, positives and negatives alike, one drawn for each state, so that the
            direction does not depend on what else is in the prompt (the preserved concepts of Concept Sliders, eq. 8).
        preserve: prompts whose predictions must not move at any dial.
        measure: how to tell whether it worked.
    """

    name: str
    target: str
    positives: list[str]
    negatives: list[str]
    contexts: list[str] | None = None
    preserve: list[str] | None = None
    measure: Measure | None = None

    def __post_init__(self) -> None:
        for field in ("name", "target"):
            if not isinstance(getattr(self, field), str):
                raise SliderError(f"concept {self.name!r}: {field!r} is not text; put quotes around it")
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise SliderError(f"concept name {self.name!r}: use letters, digits, '-' and '_' (it names files)")
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

    def in_contexts(self) -> list[tuple[str, list[str], list[str]]]:
        """(target, positives, negatives) once for every context."""
        return [
            (self.target + c, [p + c for p in self.positives], [n + c for n in self.negatives])
            for c in (self.contexts or [""])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for metadata."""
        plain = asdict(self)
        if self.measure is not None:
            plain["measure"]["prompts"] = str(self.measure.prompts)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any], where: str = "concept") -> "Concept":
        """The inverse of `to_dict`; an unknown or missing key is an error that names it."""
        plain = _arguments(cls, plain, where)
        if plain.get("measure") is not None:
            measure = _arguments(Measure, plain["measure"], f"{where}: measure")
            if wrong := [key for key, value in measure.items() if not isinstance(value, str)]:
                raise SliderError(f"{where}: measure: {wrong[0]!r} is not text; put quotes around it")
            plain["measure"] = Measure(**{**measure, "prompts": Path(measure["prompts"])})
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


def _arguments(cls: type[Concept] | type[Measure], plain: Any, where: str) -> dict[str, Any]:
    """A copy of ``plain`` that has what ``cls`` needs and nothing that it does not know."""
    known = [f.name for f in fields(cls)]
    if not isinstance(plain, dict):
        raise SliderError(f"{where}: expected a mapping with {', '.join(known)}")
    if unknown := [key for key in plain if key not in known]:
        raise SliderError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in plain]:
        raise SliderError(f"{where}: {missing[0]!r} is missing")
    return dict(plain)
