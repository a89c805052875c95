"""Finished sliders on a model: its layers run with them, and are put back.

The model's own weights are left alone: sliders act on the outputs of its layers, so that letting go restores the model
bit for bit, and dial 0 is the model itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from peft.tuners.lora import LoraLayer
from torch import nn

from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Dial, Piecewise
from sliders.errors import SliderError
from sliders.runtime.baking import is_edited
from sliders.runtime.dials import Dials
from sliders.runtime.layer_forward import DialedForward
from sliders.runtime.layers import displacements, find_layer


def is_attached(model: nn.Module) -> bool:
    """Whether sliders run on a model now, finished ones or one in training, or an edit is in its weights."""
    return any(
        isinstance(module, LoraLayer) or isinstance(vars(module).get("forward"), DialedForward) or is_edited(module)
        for module in model.modules()
    )


@contextmanager
def _in_place_of(layer: nn.Module, update: DialedForward) -> Iterator[None]:
    """Let an update run where the layer's `forward` ran."""
    before = vars(layer).get("forward")
    layer.forward = update  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def _piecewise(dial: Dial) -> Piecewise:
    """The dial, if all of it can run side by side."""
    if not isinstance(dial, Piecewise):
        raise SliderError(
            f"a {type(dial).__name__} is no slider, hinge or share of an edit, whose pieces run side by side; "
            "run one position of it with baked(model, dial.at(position))"
        )
    return dial


def check_names(dials: Sequence[Piecewise]) -> None:
    """Of dials that go together.

    Raises:
        SliderError: two share one.
    """
    names = [dial.name for dial in dials]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SliderError(
            f"two sliders are called {min(twice)!r}; load one under another name: NAME=PATH instead of its path, in "
            "Python load(path, name=...)"
        )


@contextmanager
def attach(
    model: nn.Module, dials: Sequence[Dial], values: Mapping[str, float] | None = None, fold: bool = True
) -> Iterator[Dials]:
    """Run ``model`` with sliders, hinges or shares of edits on it; gives their dials, which start at ``values`` or 0.

    Each adds to the model's own weights what it adds to them alone, also where several change one layer or are nested:
    ``W + sum_i s_i (f_i(W) - W)``, whatever the order.  For one edit after the other, compose them with ``@`` first.
    Dials with a number for each row need to know the rows: a backbone says so itself, and whoever runs another module
    does it inside ``with rows_of(rows):``.

    Args:
        model: any module; its own weights are left alone.  It may be moved to another device or precision meanwhile.
        dials: sliders, hinges or shares of edits, each with a name of its own.
        values: where they start.
        fold: multiply dials that all rows share into a copy of the weights when they turn, so that any number of
            sliders costs as much as none; False keeps the factors alone, for where a second copy is too large.

    Raises:
        SliderError: two dials share a name, or one does not fit the model's layers.
    """
    shown = [_piecewise(dial) for dial in dials]
    check_names(shown)
    turned = Dials({dial.name: dial.pieces() for dial in shown})
    parts: dict[str, list[tuple[int, LowRank]]] = {}
    for index, (name, piece) in enumerate((dial.name, piece) for dial in shown for piece in dial.pieces()):
        for module, update in displacements(model, f"slider {name!r}", piece.edit):
            parts.setdefault(module, []).append((index, update))
    with ExitStack() as stack:
        for module, updates in parts.items():
            layer = find_layer(model, module, "the edit")
            stack.enter_context(_in_place_of(layer, DialedForward(turned, layer, updates, fold, module)))
        turned.set(values or {})
        yield turned
