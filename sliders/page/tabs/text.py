"""The same dials on the language model: the base's answer beside the turned one, word by word."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from sliders.page.requests import Speech
from sliders.page.session import Session
from sliders.page.tabs import files
from sliders.page.widgets import AT_ONCE, DialControls, Values, humane, in_words, user_of


def build(session: Session) -> DialControls:
    """Put the tab on the page."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            message = gr.Textbox(
                "Tell me about your weekend.", label="Message", lines=2, max_length=600, elem_id="message"
            )
            dial_controls = DialControls.build(session.texts.entries(session.texts.opening))
            if not session.texts.opening:
                gr.Markdown("There is no slider of language yet: upload one below, or train one.")
            with gr.Accordion("Sampling", open=False):
                instruction = gr.Textbox(session.instruction, label="Instruction before the message", max_length=300)
                chat = gr.Checkbox(True, label="Use the model's chat template")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
                    tokens = gr.Slider(8, 160, 64, step=8, label="Tokens at most", min_width=140)
                    temperature = gr.Slider(0, 1.5, 0.8, step=0.1, label="Temperature", min_width=140)
            with gr.Row():
                write = gr.Button("Write", variant="primary", elem_id="write", min_width=120)
                halt = gr.Button("Stop", elem_id="stop", min_width=120)
        with gr.Column(scale=6, min_width=320):
            with gr.Row():
                base, turned = (
                    gr.Textbox(
                        label=label, lines=9, max_lines=9, interactive=False, buttons=["copy"], min_width=240,
                        elem_id=f"{name}-text",
                    )
                    for name, label in (("base", "Base"), ("turned", "With the dials"))
                )  # fmt: skip
            status = gr.HTML(f'<div class="status" role="status">{_about(session)}</div>')
    files.build(session, dial_controls, session.texts, "language")
    inputs = dial_controls.components | {message, instruction, chat, seed, tokens, temperature}

    @humane
    def answer(values: Values, request: gr.Request) -> Iterator[tuple[str, str, str]]:
        positions = dial_controls.positions(values)
        speech = Speech(
            values[message], values[instruction], values[chat], values[seed] or 0, values[tokens], values[temperature]
        )
        yield "", "", '<div class="status" role="status">The model is being read …</div>'
        for count, (left, right) in enumerate(session.write(user_of(request), speech, positions), 1):
            yield left, right, f'<div class="status" role="status">{count} tokens: {in_words(positions)}.</div>'

    def stop(request: gr.Request) -> None:
        session.stop(user_of(request))

    writing: dict[str, Any] = {
        "fn": answer, "inputs": inputs, "outputs": [base, turned, status], "trigger_mode": "multiple",
        "show_progress": "hidden", "api_visibility": "private", "concurrency_id": "language",
        "concurrency_limit": AT_ONCE,
    }  # fmt: skip
    write.click(**writing)
    halt.click(stop, queue=False, api_visibility="private")
    return dial_controls


def _about(session: Session) -> str:
    if session.language.lm is not None:
        return ""
    return (
        f"The language model ({session.language.base_model}) is read at the first answer, and fetched once if need be."
    )
