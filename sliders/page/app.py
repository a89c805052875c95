"""The page: layout alone.  What it does is in `sliders.page.session`, and each tab's layout in `sliders.page.tabs`."""

import os
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sliders.errors import SliderError
from sliders.page import api
from sliders.page.session import Session
from sliders.page.tabs import algebra, compare, images, text
from sliders.page.theme import theme

HERE = Path(__file__).parent
HOUR = 3600
PROMPT = "a person, with long hair"


def build(session: Session, prompt: str = PROMPT) -> gr.Blocks:
    """The whole page for a session."""
    with gr.Blocks(title="Concept sliders", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        api.build(session)  # before listeners of the page could take its names
        gr.HTML(
            '<header class="masthead"><h1>Concept <span class="mark">sliders</span></h1><p>Each dial is a small update '
            "of a frozen model. Turn it, and see what the model knows about the concept; at 0 it is the model itself."
            "</p></header>"
        )
        with gr.Tabs():
            with gr.Tab("Images", id="images"):
                controls, pictures = images.build(session, prompt, page)
            with gr.Tab("Text", id="text"):
                language = text.build(session)
            with gr.Tab("Algebra", id="algebra") as algebra_tab:
                algebra.build(session, algebra_tab, controls, {"images": pictures, "texts": language})
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare.build(session, compare_tab, controls, pictures)
    return page


class OnlyOwnFiles:
    """Refuses what Gradio would fetch from elsewhere for a client (``file=http...``)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").lower()
        if scope["type"] == "http" and ("file=http" in path or "/proxy=" in path):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only files of this page"})
            return
        await self.app(scope, receive, send)


def launch(
    session: Session,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: str | None = None,
    queue: int = 32,
    ready: Callable[[str], object] | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Serve the page.

    Args:
        session: what it does.
        host: address to listen on.
        port: a free one from 7860 on unless given.
        auth: USER:PASSWORD that the page asks for.
        queue: requests that may wait; more are turned away.
        ready: is told the page's address once it can be opened.
        block: until it is stopped; otherwise return while it runs.

    Raises:
        SliderError: a flag has no meaning, or the address cannot be listened on.
    """
    user, colon, password = (auth or "").partition(":")
    if auth and not (user and colon and password):
        raise SliderError("--auth must be USER:PASSWORD, both not empty")
    if queue < 1:
        raise SliderError(f"--queue is {queue}; it must be at least 1")
    os.environ["GRADIO_TEMP_DIR"] = str(session.outputs.folder)
    page = build(session)
    page.queue(max_size=queue, default_concurrency_limit=4)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=(user, password) if auth else None,
            max_file_size=session.most_bytes,
            allowed_paths=[],
            share=False,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            theme=theme(),
            css_paths=HERE / "page.css",
            head_paths=HERE / "head.html",
            footer_links=["api"],
            favicon_path=HERE / "favicon.svg",
            app_kwargs={"middleware": [Middleware(OnlyOwnFiles)]},
        )
    except OSError as error:
        raise SliderError(f"cannot listen on {host}:{port or '7860 to 7959'}: {error}") from error
    if ready:
        ready(url)
    if block:
        page.block_thread()
    return page
