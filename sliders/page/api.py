"""The named endpoints: everything that the page does, for `gradio_client` and whatever else speaks HTTP.

Dials are given as ``{"smile": 1.0}``, and pictures come as links that contain them.  The keys of sliders are in
``/sliders``; those of uploads are what ``/upload`` says.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from sliders.errors import SliderError
from sliders.page import pictures
from sliders.page.requests import Axis, Canvas, Speech
from sliders.page.session import Session
from sliders.page.turns import Superseded
from sliders.page.widgets import AT_ONCE, humane, user_of

P = ParamSpec("P")
T = TypeVar("T")
Dials = dict[str, float]


def build(session: Session) -> None:
    """Add the endpoints to the page."""

    def sliders() -> dict[str, list[dict[str, Any]]]:
        """The sliders and edits that every user begins with: key, words at the ends, range, what was measured."""
        return {
            kind: [
                {"key": e.key, "ends": list(e.ends), "range": list(e.span), "measured": e.measured}
                for e in library.entries(library.opening)
            ]
            for kind, library in (("images", session.images), ("texts", session.texts))
        }

    def draw(
        request: gr.Request, dials: Dials, prompt: str, seed: int = 0, steps: int = 15, guidance: float = 4.0,
        start: int = 0, height: int | None = None, width: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The base's picture and that with the dials, of one seed; of the model's own size if none is given."""
        canvas = Canvas(prompt, seed, steps, guidance, start, height, width)
        drawn = session.draw(user_of(request), canvas, dials)
        uris = {"base": pictures.picture_uri(drawn.base), "turned": pictures.picture_uri(drawn.turned)}
        return {**uris, "seconds": drawn.seconds}

    def grid(
        request: gr.Request, dials: Dials, prompt: str, across: str, down: str = "", low: float = -2.0,
        high: float = 2.0, count: int = 5, seed: int = 0, steps: int = 15, guidance: float = 4.0,
        height: int | None = None, width: int | None = None,
    ) -> list[list[str]]:  # fmt: skip
        """Pictures over one or two dials, a list for each position across."""
        axes = [Axis(key, low, high, count) if key else None for key in (across, down)]
        if axes[0] is None:
            raise SliderError("'across' is empty; name a dial")
        canvas = Canvas(prompt, seed, steps, guidance, height=height, width=width)
        made = session.grid(user_of(request), canvas, dials, axes[0], axes[1])
        return [[pictures.picture_uri(picture) for picture in column] for column in made]

    def write(
        request: gr.Request, dials: Dials, message: str, instruction: str = "", chat: bool = True, seed: int = 0,
        tokens: int = 64, temperature: float = 0.8,
    ) -> Iterator[dict[str, str]]:  # fmt: skip
        """The base's answer and that with the dials, as they grow."""
        speech = Speech(message, instruction, chat, seed, tokens, temperature)
        for base, turned in session.write(user_of(request), speech, dials):
            yield {"base": base, "turned": turned}

    def stop(request: gr.Request) -> bool:
        """End what this client has asked for."""
        session.stop(user_of(request))
        return True

    def hinge(left: str, right: str) -> str:
        """A dial that is one slider below 0 and another above; returns its key."""
        return session.make_hinge(left, right).key

    def relations(keys: list[str]) -> str:
        """Overlap, predicted interference and order gap, as HTML."""
        return session.relations(keys)

    def measure(request: gr.Request, keys: list[str], prompt: str, scenes: int = 2, steps: int = 15) -> str:
        """Interference, straightness and the order in time, measured, as HTML."""
        return session.measure(user_of(request), Canvas(prompt, steps=steps), keys, scenes)

    def dose(request: gr.Request, keys: list[str], scenes: int = 4, steps: int = 15, prompt: str = "") -> str:
        """Dose and response as the judge reads it, as HTML; the prompt is for those that do not say their own."""
        return session.dose(user_of(request), Canvas(prompt, steps=steps), keys, scenes)

    def explain(request: gr.Request, key: str) -> str:
        """What an update is, what it is most like, and what it reads and writes, as HTML."""
        return session.explain(user_of(request), key)

    def compare(
        request: gr.Request, key: str, prompt: str, position: float = 1.0, seed: int = 0, steps: int = 15
    ) -> dict[str, Any]:
        """Where and when a slider acts: shares of its effect, and the page's HTML."""
        found = session.compare(user_of(request), Canvas(prompt, seed, steps), key, position)
        return {
            "parts": found.parts,
            "lost_without_part": found.share(found.without_part, found.turned),
            "steps": [[window.start, window.stop] for window in found.windows],
            "lost_without_steps": found.share(found.without_window, found.turned),
            "html": pictures.comparison(found, key),
        }

    quick: list[Callable[..., object]] = [sliders, stop, hinge]
    of_pictures: list[Callable[..., object]] = [draw, grid, relations, measure, dose, explain, compare]
    for endpoint in quick:
        gr.api(_answered(endpoint), api_name=endpoint.__name__)
    for endpoint in of_pictures:
        gr.api(_answered(endpoint), api_name=endpoint.__name__, concurrency_id="pictures", concurrency_limit=AT_ONCE)
    gr.api(humane(write), api_name="write", concurrency_id="language", concurrency_limit=AT_ONCE)
    _build_files(session)


def _answered(fn: Callable[P, T]) -> Callable[P, T]:
    """A client that is superseded is told so; a page is left alone."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return fn(*args, **kwargs)
        except Superseded:
            raise SliderError("a newer request of this client took its place") from None

    return humane(call)


def _build_files(session: Session) -> None:
    """Endpoints that take or give files, through hidden components, which check where files come from."""
    with gr.Column(visible=False):
        sent, key, dials, got = gr.File(type="filepath"), gr.Textbox(), gr.JSON(), gr.File()
        buttons = [gr.Button() for _ in range(3)]

    @humane
    def upload(file: str) -> str:
        return session.upload(Path(file or "")).key

    @humane
    def download(name: str) -> str:
        return str(session.download(name))

    @humane
    def composition(positions: Dials) -> str:
        return str(session.composition(positions))

    buttons[0].click(upload, sent, key, api_name="upload", concurrency_id="pictures")
    buttons[1].click(download, key, got, api_name="download", concurrency_id="pictures")
    buttons[2].click(composition, dials, got, api_name="composition", concurrency_id="pictures")
