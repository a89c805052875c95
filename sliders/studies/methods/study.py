"""Methods of editing against the laws: the cells of the table methods x properties, at three levels.

    weights     exact, from the factors (`sliders.algebra.laws`); nothing is run
    fitting     f fitted on the base with g merged into it, and the other way round
    behaviour   predictions at states that the base visits (`sliders.studies.behavioural_laws`)

The null of what is measured is the same between an edit and its twin, fitted with another seed.  Fitted edits and cells
are kept in a folder under hashes of what they are made from, so that a study which was stopped goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine, Factored
from sliders.algebra.laws import (
    Law,
    commutes,
    inverse_residue,
    is_additive,
    is_group,
    is_idempotent,
    is_invertible,
    is_transitive,
)
from sliders.algebra.slider import Interpolated
from sliders.evaluation.base_states import BaseStates, Behaviour
from sliders.files import write_text
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import layer_weights
from sliders.studies.behavioural_laws import MeasuredLaw, SceneResiduals, against_null, interaction, path
from sliders.studies.methods.fits import FittedEdits, hash_of

VERSION = 1
"""Of what the cells mean; another one is measured anew."""


@dataclass(frozen=True)
class Study:
    """A study at one states.

    Args:
        fits: its edits.
        states: where predictions are compared.
        folder: that cells are kept in.
    """

    fits: FittedEdits
    states: BaseStates
    folder: Path

    def _kept(self, kind: str, fits: Sequence[str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell, measured unless it is there."""
        state = self.states.base.double()
        key = hash_of([VERSION, kind, list(fits), list(state.shape), f"{float(state.square().sum()):.6e}"])
        file = self.folder / "cells" / f"{kind}-{key}.json"
        if not file.is_file():
            write_text(file, json.dumps(measure(), indent=1))
        return json.loads(file.read_text())

    def _change(self, edit: Factored) -> Tensor:
        """What an edit changes in the predictions."""
        with baked(self.states.backbone, edit):
            return self.states.predict() - self.states.base

    def weights(self, name: str) -> dict[str, Any]:
        """The laws of one edit, from its factors."""
        return self._kept("weights", [self.fits.key(name)], lambda: self._weights(name))

    def _weights(self, name: str) -> dict[str, Any]:
        edit = self.fits(name)
        layers = {module: layer_weights(self.states.backbone, module) for module in edit}
        laws = {
            "invertible": is_invertible(edit),
            "idempotent": is_idempotent(edit),
            "additive": is_additive(Interpolated(name, edit)),
            "group": is_group(Interpolated(name, edit)),
        }
        if laws["invertible"]:
            biases = {module: bias for module, (_, bias) in layers.items() if bias is not None}
            residues = inverse_residue(edit, {module: weight for module, (weight, _) in layers.items()}, biases)
            laws |= {f"restored in {str(dtype)[6:]}": law for dtype, law in residues.items()}
        kind = sorted({side for element in edit.values() for side in element.sides()})
        return {"laws": {law: _plain(found) for law, found in laws.items()}, "sides": kind, "size": size(edit)}

    def weights_of_pair(self, a: str, b: str) -> dict[str, Any]:
        """Whether two edits commute, associate, and stay of their kind."""
        return self._kept("weights2", [self.fits.key(a), self.fits.key(b)], lambda: self._weights_of_pair(a, b))

    def _weights_of_pair(self, a: str, b: str) -> dict[str, Any]:
        f, g = self.fits(a), self.fits(b)
        one, two = (f @ g) @ f, f @ (g @ f)
        gap = distance(one, two) / max(size(one), 1e-300)
        return {
            "commutative": _plain(commutes(f, g)),
            "associative": {"holds": gap < 1e-3, "value": gap},
            "closed": {"holds": _kind(f) == _kind(g) == _kind(f @ g), "kinds": [_kind(f), _kind(g), _kind(f @ g)]},
        }

    def transitive(self, names: Sequence[str]) -> dict[str, Any]:
        """Whether commuting is transitive over edits."""
        return _plain(is_transitive({name: self.fits(name) for name in names}))

    def chain(self, ab: str, bc: str, ac: str) -> dict[str, Any]:
        """Whether a -> b and b -> c, fitted one on the other in either order, is a -> c."""

        def measure() -> dict[str, Any]:
            wanted = self._change(self.fits(ac))
            whole = self.states.squared(wanted)
            null, found = self._twin_gap(ac, wanted, whole), {}
            for first, second in ((ab, bc), (bc, ab)):
                made = self._change(self.fits(second, on=first) @ self.fits(first))
                gap = SceneResiduals(self.states.squared(made - wanted), whole)
                found[f"{first}, then {second}"] = against_null("chain", (first, second), gap, null).to_dict()
            return found

        return self._kept("chain", [self.fits.key(name) for name in (ab, bc, ac)], measure)

    def _twin_gap(self, name: str, change: Tensor, whole: Tensor) -> SceneResiduals | None:
        if not self.fits.has_twin(name):
            return None
        return SceneResiduals(self.states.squared(self._change(self.fits(name, 1)) - change), whole)

    def behaviour(self, name: str) -> dict[str, Any]:
        """What the dial of an edit does to predictions, and doing it twice."""

        def measure() -> dict[str, Any]:
            edit = self.fits(name)
            once = self._change(edit)
            whole = self.states.squared(once)
            twice = SceneResiduals(self.states.squared(self._change(edit @ edit) - once), whole)
            laws = [against_null("idempotence", (name,), twice, self._twin_gap(name, once, whole))]
            twin = [Interpolated("twin", self.fits(name, 1))] if self.fits.has_twin(name) else []
            with attach(self.states.backbone, [Interpolated(name, edit), *twin]) as dials:
                found = path(Behaviour(self.states, dials), name, {name: "twin"} if twin else {})
            return {"laws": [m.to_dict() for m in (*laws, *found.laws)], "straight": found.straight}

        seeds = range(2) if self.fits.has_twin(name) else range(1)
        return self._kept("behaviour", [self.fits.key(name, seed) for seed in seeds], measure)

    def behaviour_of_pair(self, a: str, b: str) -> dict[str, Any]:
        """Whether two edits add up, whether their order matters, and whether the order of fitting does."""
        twins = self.fits.has_twin(a) and self.fits.has_twin(b)
        seeds = range(2) if twins else range(1)

        def measure() -> dict[str, Any]:
            laws = [self._interaction(a, b, twins), self._order(a, b, twins)]
            if self.fits.refits(a) or self.fits.refits(b):
                laws.append(self._order_of_fitting(a, b, twins))
            return {"laws": [m.to_dict() for m in laws], "fitting": self._refitted(a, b)}

        return self._kept("pair", [self.fits.key(name, seed) for name in (a, b) for seed in seeds], measure)

    def _interaction(self, a: str, b: str, twins: bool) -> MeasuredLaw:
        dials = [Interpolated(name, self.fits(name)) for name in (a, b)]
        others = [Interpolated(f"{name} (twin)", self.fits(name, 1)) for name in (a, b)] if twins else []
        with attach(self.states.backbone, [*dials, *others]) as attached:
            named = {name: f"{name} (twin)" for name in (a, b)} if twins else {}
            return interaction(Behaviour(self.states, attached), a, b, named)

    def _order(self, a: str, b: str, twins: bool) -> MeasuredLaw:
        """Of application: both fitted on the base."""
        one, two = self._change(self.fits(a) @ self.fits(b)), self._change(self.fits(b) @ self.fits(a))
        other = self._change(self.fits(a, 1) @ self.fits(b, 1)) if twins else None
        return self._gap("order of application", (a, b), one, two, other)

    def _order_of_fitting(self, a: str, b: str, twins: bool) -> MeasuredLaw:
        """The second fitted on the base with the first; a trained slider stays as it was trained."""

        def both(first: str, second: str, seed: int) -> Tensor:
            on = first if self.fits.refits(second) else None
            return self._change(self.fits(second, seed, on) @ self.fits(first, seed))

        return self._gap("order of fitting", (a, b), both(a, b, 0), both(b, a, 0), both(a, b, 1) if twins else None)

    def _gap(self, law: str, of: tuple[str, str], one: Tensor, two: Tensor, twin: Tensor | None) -> MeasuredLaw:
        squared = self.states.squared
        whole = (squared(one) + squared(two)) / 2
        null = None if twin is None else SceneResiduals(squared(one - twin), whole)
        return against_null(law, of, SceneResiduals(squared(one - two), whole), null)

    def _refitted(self, a: str, b: str) -> dict[str, float]:
        """How far an edit that was fitted on the other one is from itself fitted on the base, as maps."""
        pairs = [(x, y) for x, y in ((a, b), (b, a)) if self.fits.refits(x)]
        return {
            f"{x} on {y}": distance(self.fits(x, on=y), self.fits(x)) / max(size(self.fits(x)), 1e-300)
            for x, y in pairs
        }


def _plain(law: Law) -> dict[str, Any]:
    return {"holds": law.holds, "value": law.value, "reason": law.reason}


def _kind(edit: Affine) -> str:
    """What kind of element an edit is: the sides that it acts from, whether it adds, whether it is a projection."""
    sides = sorted({side for element in edit.values() for side in element.sides()})
    adds = any(float(element.shift.norm()) > 1e-6 * size(edit) for element in edit.values())
    if not sides:
        return "translation"
    return " ".join([*sides, *(["shift"] if adds else []), *(["projection"] if is_idempotent(edit) else [])])
