"""What several tabs have in common: dials for whatever sliders a user has, and errors in words."""

import functools
import html
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.blocks import Block

from sliders.errors import SliderError
from sliders.page.library import ShownDial
from sliders.page.painting import Progress as Told
from sliders.page.requests import MOST_CHOSEN
from sliders.page.turns import Superseded
from sliders.report.drawing import dial_label

P = ParamSpec("P")
T = TypeVar("T")
Values = Mapping[Block, Any]
"""What components hold, as Gradio gives it to a listener whose inputs are a set."""

PROGRESS = gr.Progress()
"""The default of a listener's argument, in whose place Gradio puts the request's own."""
AT_ONCE = 8
"""Requests to one model that may wait for each other inside; all others wait in the queue."""


def humane(fn: Callable[P, T]) -> Callable[P, T]:
    """A listener whose `SliderError`s are shown as messages, and which leaves the page alone when superseded."""
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[object]:
            try:
                yield from fn(*args, **kwargs)  # pyright: ignore[reportReturnType]
            except SliderError as error:
                raise _shown(error) from None

        return stream  # pyright: ignore[reportReturnType]

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return fn(*args, **kwargs)
        except SliderError as error:
            raise _shown(error) from None
        except Superseded:
            return gr.skip()  # pyright: ignore[reportReturnType]

    return call


def _shown(error: SliderError) -> gr.Error:
    return gr.Error(html.escape(str(error)), duration=15, title="That did not work", print_exception=False)


def told(progress: gr.Progress) -> Told:
    """A report that moves the page's progress bar."""

    def report(done: int, total: int, what: str) -> None:
        progress((done, total), unit=what)

    return report


def user_of(request: gr.Request) -> str:
    """Who asks: one open page, or one client."""
    return request.session_hash or ""


@dataclass(frozen=True)
class DialControls:
    """Dials for the sliders of one model, as many as can be; those without a slider are hidden.

    Args:
        keys: of the user's sliders, as state of the page.
        dials: in the order of the keys.
    """

    keys: gr.State
    dials: list[gr.Slider]

    @classmethod
    def build(cls, entries: Sequence[ShownDial]) -> "DialControls":
        """Put dials on the page."""
        shown = entries[:MOST_CHOSEN]
        keys = gr.State([entry.key for entry in shown])
        with gr.Column(elem_classes="dials"):
            dials = [
                gr.Slider(**_looks(entry), value=0, step=0.05, visible=entry is not None)
                for entry in [*shown, *[None] * (MOST_CHOSEN - len(shown))]
            ]
        return cls(keys, dials)

    @property
    def components(self) -> set[Block]:
        """What a listener needs to read the dials."""
        return {self.keys, *self.dials}

    def positions(self, values: Values) -> dict[str, float]:
        """Where the dials stand."""
        return {key: values[dial] for key, dial in zip(values[self.keys], self.dials, strict=False)}

    def with_one_more(self, values: Values, entry: ShownDial) -> tuple[list[str], dict[Block, Any]]:
        """The keys and the page's changes when a slider is added; there is room for so many and no more."""
        keys: list[str] = values[self.keys]
        if entry.key in keys:
            return keys, {}
        if len(keys) == len(self.dials):
            raise SliderError(f"there is room for {len(self.dials)} dials; load the page again to start anew")
        dial = self.dials[len(keys)]
        keys = [*keys, entry.key]
        return keys, {self.keys: keys, dial: gr.update(**_looks(entry), value=0, visible=True)}


def _looks(entry: ShownDial | None) -> dict[str, Any]:
    """A dial's name, the words at its ends, its range, and where it is filled from."""
    if entry is None:
        return {"minimum": -2.0, "maximum": 2.0, "label": "", "info": "", "elem_classes": ["dial"]}
    low, high = entry.ends
    left, right = ("−" if entry.span[0] else "0"), ("+" if entry.span[1] else "0")
    return {
        "minimum": entry.span[0],
        "maximum": entry.span[1],
        "label": entry.key,
        "info": f"{left} {low}  ⟷  {high} {right}" + (f"   ({entry.measured})" if entry.measured else ""),
        "elem_classes": ["dial"] if entry.span[0] else ["dial", "from-0"],
    }


def in_words(positions: Mapping[str, float]) -> str:
    """Which dials are turned, and where to."""
    turned = [f"{key} {dial_label(round(position, 2))}" for key, position in positions.items() if position]
    return ", ".join(turned) or "all dials at 0"
