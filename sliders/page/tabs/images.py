"""Turn dials and see the picture change, beside the base's of the same seed."""

import random
from html import escape
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sliders.errors import SliderError
from sliders.page import pictures
from sliders.page.requests import MOST_ON_A_SIDE, Axis, Canvas
from sliders.page.session import Session
from sliders.page.tabs import files
from sliders.page.widgets import AT_ONCE, PROGRESS, DialControls, Values, humane, in_words, told, user_of
from sliders.report.drawing import dial_label

NOBODY = "none"
WAITING = '<div class="waiting">The first picture comes in a moment.</div>'


class PictureControls:
    """The controls of what is painted; other tabs paint the same."""

    def __init__(self, prompt: str, size: tuple[int, int]) -> None:
        with gr.Row(equal_height=True):
            self.prompt = gr.Textbox(
                prompt, label="Prompt", max_length=300, scale=4, elem_id="prompt", info="Enter draws it"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90, elem_id="seed")
        with gr.Row():
            self.dice = gr.Button("Another seed", size="sm", min_width=120)
            self.zero = gr.Button("All dials to 0", size="sm", min_width=120)
        with gr.Accordion("Sampling", open=False):
            self.steps = gr.Slider(1, 50, 15, step=1, label="Steps")
            self.guidance = gr.Slider(0, 12, 4, step=0.5, label="Guidance")
            self.start = gr.Slider(
                0, 100, 0, step=5, label="Sliders set in after (% of the steps)",
                info="Later: more of the base's composition stays",
            )  # fmt: skip
            with gr.Row():
                self.height, self.width = (
                    gr.Number(side, label=label, precision=0, minimum=8, min_width=120, elem_id=label.lower())
                    for label, side in zip(("Height", "Width"), size, strict=True)
                )

    @property
    def components(self) -> set[Block]:
        """What a listener needs to read them."""
        return {self.prompt, self.seed, self.steps, self.guidance, self.start, self.height, self.width}

    def canvas(self, values: Values) -> Canvas:
        """What they ask for."""
        steps = values[self.steps]
        start = round(steps * values[self.start] / 100)
        size = values[self.height], values[self.width]
        return Canvas(values[self.prompt], values[self.seed] or 0, steps, values[self.guidance], start, *size)


def build(session: Session, prompt: str, page: gr.Blocks) -> tuple[PictureControls, DialControls]:
    """Put the tab on the page."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            controls = PictureControls(prompt, session.backbone.size())
            dial_controls = DialControls.build(session.images.entries(session.images.opening))
            if not session.images.opening:
                gr.Markdown("There is no slider yet: upload one below, or train one with `make train`.")
        with gr.Column(scale=6, min_width=320, elem_classes="stage"):
            shown = gr.HTML(WAITING, elem_id="result")
            status = gr.HTML('<div class="status" role="status"></div>')
    with gr.Accordion("A strip or a grid over one or two dials", open=False):
        keys = [NOBODY, *session.images.opening]
        with gr.Row():
            across = gr.Dropdown(keys, value=keys[min(1, len(keys) - 1)], label="Across", min_width=120)
            down = gr.Dropdown(keys, value=NOBODY, label="Down", min_width=120)
        with gr.Row():
            reach = gr.Slider(
                0.5, 4, 2, step=0.5, label="From − to +", min_width=140, info="Edits go over their own range"
            )
            count = gr.Slider(3, MOST_ON_A_SIDE, 5, step=2, label="Pictures on a side", min_width=140)
        paint_grid = gr.Button("Draw it")
        gridded = gr.HTML(elem_id="grid")
    files.build(session, dial_controls, session.images, "pictures")
    inputs = dial_controls.components | controls.components

    @humane
    def draw(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> tuple[str, str]:
        canvas, positions = controls.canvas(values), dial_controls.positions(values)
        drawn = session.draw(user_of(request), canvas, positions, told(progress))
        said = in_words(positions)
        html = pictures.pair(drawn.base, drawn.turned, canvas.prompt, said)
        status = f"Drawn in {drawn.seconds:.1f} s: {said}.{session.unread(canvas.prompt)}"
        return html, f'<div class="status" role="status">{escape(status)}</div>'

    @humane
    def grid(values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> str:
        picked = [None if values[box] == NOBODY else values[box] for box in (across, down)]
        chosen = [
            Axis(key, *session.images[key].strip(values[reach]), values[count]) if key else None for key in picked
        ]
        if chosen[0] is None:
            raise SliderError("choose the dial that the strip goes along")
        positions = dial_controls.positions(values)
        painted = session.grid(
            user_of(request), controls.canvas(values), positions, chosen[0], chosen[1], told(progress)
        )
        labels = [[dial_label(round(p, 2)) for p in axis.positions] if axis else [""] for axis in chosen]
        corner = f"{chosen[1].key} ↓  {chosen[0].key} →" if chosen[1] else f"{chosen[0].key} →"
        return pictures.table(painted, labels[0], labels[1], corner, values[controls.prompt])

    once: dict[str, Any] = {
        "api_visibility": "private", "concurrency_id": "pictures", "concurrency_limit": AT_ONCE,
    }  # fmt: skip
    drawing: dict[str, Any] = {
        "fn": draw, "inputs": inputs, "outputs": [shown, status], "trigger_mode": "multiple",
        "show_progress": "minimal", "show_progress_on": [status], **once,
    }  # fmt: skip
    controls.prompt.submit(**drawing)
    for control in (*dial_controls.dials, controls.steps, controls.guidance, controls.start):
        control.release(**drawing)
    for number in (controls.seed, controls.height, controls.width):
        number.change(**drawing)
    controls.dice.click(lambda: random.randrange(10_000), None, controls.seed, api_visibility="private")
    controls.zero.click(
        lambda: [0.0] * len(dial_controls.dials), None, dial_controls.dials, api_visibility="private"
    ).then(**drawing)
    paint_grid.click(grid, inputs | {across, down, reach, count}, gridded, **once)
    gr.on(
        [dial_controls.keys.change],
        lambda known: [gr.update(choices=[NOBODY, *known])] * 2,
        dial_controls.keys,
        [across, down],
        api_visibility="private",
    )
    page.load(**drawing)
    return controls, dial_controls
