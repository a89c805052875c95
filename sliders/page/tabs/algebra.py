"""What sliders and edits share, what they do to each other, and what an update is."""

from typing import Any

import gradio as gr

from sliders.errors import SliderError
from sliders.page.session import Session
from sliders.page.tabs.images import PictureControls
from sliders.page.widgets import AT_ONCE, PROGRESS, DialControls, Values, humane, told, user_of

_PICTURES, _LANGUAGE = "of pictures", "of language"


def build(session: Session, tab: gr.Tab, controls: PictureControls, of_models: dict[str, DialControls]) -> None:
    """Put the tab on the page.

    Args:
        session: that does it.
        tab: it is in; what can be chosen is read anew when it is opened.
        controls: whose prompt, seed, steps and guidance the measurements of pictures use.
        of_models: of the two kinds of sliders, pictures first.
    """
    named: dict[str, DialControls] = dict(zip((_PICTURES, _LANGUAGE), of_models.values(), strict=True))
    opening = session.images.opening
    kind = gr.Radio(list(named), value=_PICTURES, label="Sliders and edits")
    chosen = gr.CheckboxGroup(opening, value=opening, label="Which", elem_id="chosen")
    with gr.Row():
        relate = gr.Button("Overlap and predictions", variant="primary", elem_id="relate")
        measure = gr.Button("Measure on the model", elem_id="measure")
        dose = gr.Button("Dose and response", elem_id="dose")
        count = gr.Slider(1, 8, 3, step=1, label="Scenes to measure on", min_width=160)
    with gr.Row(elem_classes="low"):
        what = gr.Dropdown(
            opening, value=opening[0] if opening else None, scale=3, elem_id="update",
            label="Explain an update (upload yours on the Images or Text tab)",
        )  # fmt: skip
        explain = gr.Button("Explain it", scale=1, elem_id="explain")
    shown = gr.HTML(elem_id="studies")

    def known(picked: str, *keys: list[str]) -> tuple[Any, Any]:
        there = dict(zip(named, keys, strict=True))[picked]
        return gr.update(choices=there, value=there), gr.update(choices=[key for each in keys for key in each])

    @humane
    def relations(values: Values) -> str:
        return session.relations(values[chosen])

    @humane
    def measured(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> str:
        return session.measure(user_of(request), controls.canvas(values), values[chosen], values[count], told(progress))

    @humane
    def dosed(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> str:
        return session.dose(user_of(request), controls.canvas(values), values[chosen], values[count], told(progress))

    @humane
    def explained(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> str:
        if not values[what]:
            raise SliderError("choose an update to explain")
        return session.explain(user_of(request), values[what], told(progress))

    private: dict[str, Any] = {"api_visibility": "private"}
    shared: dict[str, Any] = {**private, "concurrency_id": "pictures", "concurrency_limit": AT_ONCE}
    listed = [kind, *(dial_controls.keys for dial_controls in of_models.values())]
    gr.on([tab.select, kind.change], known, listed, [chosen, what], show_progress="hidden", **private)
    relate.click(relations, {chosen}, shown, **shared)
    measure.click(measured, controls.components | {chosen, count}, shown, **shared)
    dose.click(dosed, controls.components | {chosen, count}, shown, **shared)
    explain.click(explained, {what}, shown, **shared)
