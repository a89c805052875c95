"""`sliders demo`: dials in a browser."""

from pathlib import Path

from sliders.backbones.precision import Precision
from sliders.cli.defaults import AVATARS, JUDGE, listed
from sliders.errors import SliderError
from sliders.resources.paths import Source

LANGUAGE = Source("smollm2")


def demo(
    base: Source = AVATARS,
    sliders: Path | list[Path] | None = None,
    language: Source = LANGUAGE,
    judge: Source | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: str | None = None,
    queue: int = 32,
    upload_mb: float = 32.0,
    out: Path = Path("runs/demo"),
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Open a page on which dials are turned: pictures, language, algebra, and one slider looked at closely.

    Args:
        base: name, folder or hub id of the model of pictures.
        sliders: files of sliders of pictures, folders of language, and files of edits of either, NAME= before one to
            call it otherwise; those that come with the package, and those that were trained into runs/, unless
            given.
        language: name, folder or hub id of the language model, which is read when the Text tab is first used.
        judge: file of the attribute judge, for dose and response; that of the embedded model unless given.
        host: address to listen on; 0.0.0.0 for all that reach this machine (give --auth then).
        port: a free one from 7860 on unless given.
        auth: USER:PASSWORD that the page asks for.
        queue: requests that may wait; more are turned away.
        upload_mb: the largest file that can be uploaded, in MB.
        out: folder for what users upload and download; nothing outside of it can be read through the page.
        device: to run both models on: cpu, cuda, one such as cuda:1, mps, or auto for the best; auto unless given.
        dtype: precision of their weights: float32, bfloat16, float16, or auto; auto unless given.
    """
    try:
        from sliders.page.app import launch
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("gradio", "gradio_client"):
            raise
        raise SliderError("the demo needs gradio: pip install 'concept-sliders[demo]'") from None
    from sliders.backbones.base import of_class
    from sliders.backbones.choice import backbone_of
    from sliders.backbones.diffusion import DiffusionBackbone
    from sliders.backbones.language.model import CausalLMBackbone
    from sliders.console import say
    from sliders.files import check_place
    from sliders.page.opening import open_session

    check_place(out, folder=True)
    if judge is None and base == AVATARS:
        judge = JUDGE
    found, spoken = backbone_of(base), CausalLMBackbone(language)
    backbone = of_class(found, DiffusionBackbone, "the first tab needs", "give a language model with --language")
    for used in (backbone, spoken):
        used.place(device, dtype)
    session = open_session(backbone, spoken, None if sliders is None else listed(sliders), out, judge, upload_mb)
    say(f"sliders {', '.join([*session.images.opening, *session.texts.opening]) or 'none'}")
    launch(session, host, port, auth, queue, ready=lambda url: say(f"page    {url}"))
