"""What a slider's file says of the slider, whatever the file's layout.

Keys under ``sliders.*`` say what the slider is, on which base, and how it was measured; ``modelspec.*`` says so in the
words of the ModelSpec standard.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sliders.algebra.slider import Slider
from sliders.concept import Concept
from sliders.errors import SliderError

SCHEMA_VERSION = "1"


def describe(
    concept: Concept,
    base_model: str,
    fingerprint: str,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    eta: float,
    training: Mapping[str, Any],
) -> dict[str, str]:
    """A slider's metadata: what it is and how it was made."""
    return {
        "sliders.schema_version": SCHEMA_VERSION,
        "sliders.name": concept.name,
        "sliders.concept": json.dumps(concept.to_dict()),
        "sliders.base_model": base_model,
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


def concept_of(slider: Slider) -> Concept:
    """The concept that a slider was trained on.

    Raises:
        SliderError: the file does not say (it was not made by this package).
    """
    if "sliders.concept" not in slider.metadata:
        raise SliderError(f"slider {slider.name!r} does not say which concept it was trained on")
    try:
        plain = json.loads(slider.metadata["sliders.concept"])
    except ValueError as error:
        raise SliderError(f"slider {slider.name!r}: its sliders.concept is not JSON: {error}") from error
    return Concept.from_dict(plain, f"slider {slider.name!r}")


def check_base(slider: Slider, fingerprint: str, base_model: str) -> None:
    """Refuse a slider that was made for another base.

    Raises:
        SliderError: both fingerprints are known and differ.
    """
    wanted = slider.metadata.get("sliders.base_fingerprint")
    if wanted is not None and wanted != fingerprint:
        raise SliderError(
            f"slider {slider.name!r} was made for {slider.metadata.get('sliders.base_model')} (fingerprint {wanted}), "
            f"but {base_model} has fingerprint {fingerprint}; --any_base true loads it all the same"
        )
