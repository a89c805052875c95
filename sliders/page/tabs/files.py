"""Files, sent and fetched, and two sliders made into one dial.  The Images and the Text tab each have this."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sliders.errors import SliderError
from sliders.page.library import Library, ShownDial
from sliders.page.session import Session
from sliders.page.widgets import DialControls, Values, humane


def build(session: Session, dial_controls: DialControls, library: Library, what: str) -> None:
    """Put it on the page.

    Args:
        session: that does it.
        dial_controls: the tab's dials, of which there is one more after an upload.
        library: the tab's.
        what: its model makes, in a word.
    """
    with gr.Accordion("Slider files and hinges", open=False), gr.Row():
        with gr.Column():
            sent = gr.File(
                label=f"Upload a slider or an edit of {what} (.safetensors, up to {session.most_bytes / 2**20:.0f} MB)",
                file_types=[".safetensors"],
                height=120,
                elem_id=f"upload-{what}",
            )
            said = gr.Markdown(elem_classes="status", elem_id=f"uploaded-{what}")
        with gr.Column():
            left = gr.Dropdown(library.opening, label="Hinge: below 0")
            right = gr.Dropdown(library.opening, label="Hinge: above 0")
            join = gr.Button("Make the hinge", size="sm")
        with gr.Column():
            one = gr.Dropdown(library.opening, label="Download one of them")
            get_one = gr.Button("Download it", size="sm")
            get_all = gr.Button("Download all dials as they stand, as one file", size="sm")
            got = gr.File(label="Your file", interactive=False, height=70, elem_id=f"download-{what}")
    choices = [left, right, one]

    def added(values: Values, entry: ShownDial) -> dict[Block, Any]:
        keys, changes = dial_controls.with_one_more(values, entry)
        return {**changes, **{choice: gr.update(choices=keys) for choice in choices}}

    @humane
    def upload(values: Values) -> dict[Block, Any]:
        if not values[sent]:
            return {said: ""}
        entry = session.upload(Path(values[sent]))
        if entry.modality != library.modality:
            raise SliderError(f"{entry.key} is for the other model; upload it on the other tab")
        return {**added(values, entry), said: f"**{entry.key}** is a dial now."}

    @humane
    def hinge(values: Values) -> dict[Block, Any]:
        if not values[left] or not values[right]:
            raise SliderError("choose a slider for below 0 and one for above 0")
        entry = session.make_hinge(values[left], values[right])
        return {**added(values, entry), said: f"**{entry.key}** is a dial now."}

    @humane
    def download(values: Values) -> str:
        if not values[one]:
            raise SliderError("choose a slider or an edit to download")
        return str(session.download(values[one]))

    @humane
    def compose(values: Values) -> str:
        return str(session.composition(dial_controls.positions(values)))

    changed = [dial_controls.keys, *dial_controls.dials, *choices, said]
    private: dict[str, Any] = {"api_visibility": "private", "concurrency_id": what}
    sent.upload(upload, {dial_controls.keys, sent}, changed, **private)
    join.click(hinge, {dial_controls.keys, left, right}, changed, **private)
    get_one.click(download, {one}, got, **private)
    get_all.click(compose, dial_controls.components, got, **private)
