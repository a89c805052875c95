"""What a slider's file says of the slider, whatever the file's layout.

Keys under ``sliders.*`` say what the slider is, on which base, and how it was measured; ``modelspec.*`` says so in the
words of the ModelSpec standard.
"""

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sliders.algebra.slider import Hinge, NamedDial
from sliders.concept import Concept
from sliders.errors import SliderError

SCHEMA_VERSION = "1"


def describe(
    concept: Concept,
    base_model: str,
    base_class: str,
    fingerprint: str,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    eta: float,
    training: Mapping[str, Any],
    base_settings: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """A slider's metadata: what it is and how it was made."""
    return {
        "sliders.schema_version": SCHEMA_VERSION,
        "sliders.name": concept.name,
        "sliders.concept": json.dumps(concept.to_dict()),
        "sliders.base_model": base_model,
        "sliders.base_class": base_class,
        **({"sliders.base_settings": json.dumps(dict(base_settings))} if base_settings else {}),
        "sliders.base_fingerprint": fingerprint,
        "sliders.rank": str(rank),
        "sliders.alpha": str(alpha),
        "sliders.targets": json.dumps(list(targets)),
        "sliders.eta": str(eta),
        "sliders.training": json.dumps(dict(training)),
        "sliders.dial_range": "[-2, 2]",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": concept.name,
        "modelspec.architecture": "lora",
        "modelspec.date": datetime.date.today().isoformat(),
        "modelspec.description": f"{' / '.join(concept.positives)} (+) against {' / '.join(concept.negatives)} (-)",
        "modelspec.usage_hint": "weight 1 and -1 are the useful ends; -2 to 2 is the range it was trained for",
    }


def describe_composed(name: str, made: Mapping[str, Any], parts: Sequence[NamedDial]) -> dict[str, str]:
    """Metadata of a slider that was made from others: from which, how, and at what error.

    Args:
        name: of the result.
        made: what is said of it, as plain data: how, of which parts, the error.
        parts: what it was made from; the base is kept where all that name one name the same.
    """
    said = {
        "sliders.schema_version": SCHEMA_VERSION,
        "sliders.name": name,
        "sliders.composed": json.dumps(dict(made)),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.architecture": "lora",
        "modelspec.date": datetime.date.today().isoformat(),
        "modelspec.description": f"{made['how']} of {', '.join(part.name for part in parts)}",
        "modelspec.usage_hint": "weight 1 is the composition as it was made",
    }
    for key in ("sliders.base_model", "sliders.base_class", "sliders.base_settings"):
        named = {part.metadata[key] for part in parts if key in part.metadata}
        if len(named) == 1:
            said[key] = named.pop()
    hashes = list(dict.fromkeys(p.metadata[k] for p in parts if (k := "sliders.base_fingerprint") in p.metadata))
    found: dict[str, set[str]] = {}
    for fingerprint in hashes:
        for name, value in components(fingerprint).items():
            found.setdefault(name, set()).add(value)
    if len(hashes) == 1:
        said["sliders.base_fingerprint"] = hashes[0]
    elif found and all(map(components, hashes)) and all(len(values) == 1 for values in found.values()):
        said["sliders.base_fingerprint"] = ",".join(f"{name}={min(found[name])}" for name in sorted(found))
    return said


def check_name(name: str, where: str) -> None:
    """Refuse a name that could lead out of a folder when a file is called by it.

    Args:
        name: of a slider or an edit.
        where: it is said, for errors.

    Raises:
        SliderError: it is empty, longer than a file's name may be, hidden, more than one line, or has a slash.
    """
    if not 0 < len(name) <= 150 or name.startswith(".") or not name.isprintable() or set(name) & {"/", "\\"}:
        raise SliderError(f"{where} is {name[:80]!r}; a name is one line without slashes, and no dot begins it")


def number_of(dial: NamedDial, key: str, otherwise: float | None = None) -> float:
    """A number of the metadata.

    Args:
        dial: whose.
        key: such as ``sliders.eta``.
        otherwise: where the metadata does not have the key.

    Raises:
        SliderError: it is none that is finite, or is not there and there is no other.
    """
    if key not in dial.metadata and otherwise is not None:
        return otherwise
    said = dial.metadata.get(key)
    try:
        number = float(said or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SliderError(f"slider {dial.name!r}: {key} in its metadata is {str(said)[:40]!r}, which is no number")
    return number


def check_one_base(parts: Sequence[NamedDial]) -> None:
    """Refuse sliders that were made for unlike bases.

    Raises:
        SliderError: two known fingerprints differ.
    """
    known = [part for part in parts if "sliders.base_fingerprint" in part.metadata]
    for number, part in enumerate(known):
        for other in known[:number]:
            if _unlike(other.metadata, part.metadata):
                raise SliderError(
                    f"sliders {other.name!r} and {part.name!r} were made for different bases "
                    f"({other.metadata.get('sliders.base_model')} and {part.metadata.get('sliders.base_model')}); "
                    "--any_base true composes them all the same"
                )


def _unlike(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether what two sliders say of their bases contradicts; by name where their fingerprints are of two kinds."""
    hashes = [said["sliders.base_fingerprint"] for said in (one, other)]
    if bool(components(hashes[0])) != bool(components(hashes[1])):
        return one.get("sliders.base_model") != other.get("sliders.base_model")
    return unlike(*hashes)


def unlike(one: str, other: str) -> bool:
    """Whether two fingerprints are of unlike bases, as far as they are of the same components."""
    parts = components(one), components(other)
    if not parts[0] or not parts[1]:
        return one != other
    return any(parts[0][name] != parts[1][name] for name in parts[0].keys() & parts[1].keys())


def concept_of(slider: NamedDial) -> Concept:
    """The concept that a slider was trained on.

    Raises:
        SliderError: the file does not say (it was not made by this package).
    """
    if "sliders.concept" not in slider.metadata:
        raise SliderError(f"slider {slider.name!r} does not say which concept it was trained on")
    try:
        plain = json.loads(slider.metadata["sliders.concept"])
    except (ValueError, RecursionError) as error:
        raise SliderError(f"slider {slider.name!r}: its sliders.concept is not JSON: {error}") from error
    return Concept.from_metadata(plain, f"slider {slider.name!r}")


class Base(Protocol):
    """What a model says of itself; a backbone is one."""

    @property
    def base_model(self) -> str: ...

    def fingerprint(self, components: Iterable[str] | None = None) -> str: ...

    def old_fingerprint(self) -> str: ...


def components(fingerprint: str) -> dict[str, str]:
    """The hash of each component; empty for the one hash that earlier versions wrote."""
    parts = [part.partition("=") for part in fingerprint.split(",")]
    return {name: value for name, equals, value in parts if equals}


def differs(metadata: Mapping[str, str], base: Base) -> str:
    """Which component of a base is not the one that a slider was made for; nothing if all are, or it does not say.

    Only the components that the slider is on are compared: a model with another autoencoder is the same to a slider on
    its UNet.
    """
    wanted = metadata.get("sliders.base_fingerprint")
    if wanted is None:
        return ""
    if not (parts := components(wanted)):
        return "" if wanted == base.old_fingerprint() else "the model"
    try:
        have = components(base.fingerprint(parts))
    except KeyError as error:
        return str(error.args[0])
    return next((name for name, value in parts.items() if have[name] != value), "")


def check_base(slider: NamedDial, base: Base) -> None:
    """Refuse a slider that was made for another base.

    Raises:
        SliderError: a component that it is on is known, and is another one.
    """
    if isinstance(slider, Hinge):
        for side in (slider.left, slider.right):
            check_base(side, base)
        return
    if component := differs(slider.metadata, base):
        raise SliderError(
            f"slider {slider.name!r} was made for {slider.metadata.get('sliders.base_model')}, and {component} of "
            f"{base.base_model} has other weights (another model, or another precision of its files; by its "
            "fingerprint); --any_base true loads it all the same"
        )
