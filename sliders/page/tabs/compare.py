"""One slider or edit looked at closely."""

from typing import Any

import gradio as gr

from sliders.errors import SliderError
from sliders.page import pictures
from sliders.page.session import Session
from sliders.page.tabs.images import PictureControls
from sliders.page.widgets import AT_ONCE, PROGRESS, DialControls, Values, humane, told, user_of


def build(session: Session, tab: gr.Tab, controls: PictureControls, dial_controls: DialControls) -> None:
    """Put the tab on the page; it paints what the Images tab's prompt, seed and sampling say."""
    opening = session.images.opening
    with gr.Row(elem_classes="low"):
        key = gr.Dropdown(opening, value=opening[0] if opening else None, label="Slider or edit", elem_id="compared")
        position = gr.Slider(-2, 2, 1, step=0.25, label="Look at it at dial")
        look = gr.Button("Look closely", variant="primary", elem_id="look")
    gr.Markdown(
        "Its range as a film; what changed in the picture; and, by turning parts of it off, where in the network and "
        "at which steps of sampling it acts. Prompt, seed and sampling are those of the Images tab.",
        elem_classes="status",
    )
    shown = gr.HTML(elem_id="comparison")

    @humane
    def compare(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> str:
        if not values[key]:
            raise SliderError("choose a slider or an edit to look at")
        canvas = controls.canvas(values)
        return pictures.comparison(
            session.compare(user_of(request), canvas, values[key], values[position], told(progress)), values[key]
        )

    private: dict[str, Any] = {"api_visibility": "private"}
    tab.select(lambda keys: gr.update(choices=keys), dial_controls.keys, key, show_progress="hidden", **private)
    look.click(
        compare,
        controls.components | {key, position},
        shown,
        concurrency_id="pictures",
        concurrency_limit=AT_ONCE,
        **private,
    )
