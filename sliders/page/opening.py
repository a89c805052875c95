"""What a page opens with."""

from collections.abc import Sequence
from pathlib import Path

from sliders import formats
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.errors import SliderError
from sliders.formats.given import given
from sliders.formats.metadata import check_base, differs
from sliders.page.library import Library, find, load_opening
from sliders.page.safety import MEGABYTE, OutputFolder
from sliders.page.session import Session
from sliders.runtime.attach import check_names


def open_session(
    backbone: DiffusionBackbone,
    language: CausalLMBackbone,
    sliders: Sequence[Path] | None,
    folder: Path,
    judge: Path | str | None,
    megabytes: float,
) -> Session:
    """Load the model of pictures and the sliders; the language model waits until it is asked.

    Args:
        backbone: the model of pictures.
        language: the language model.
        sliders: files of pictures, folders of language, and edits of either, NAME= before one to call it otherwise;
            None takes those that come with the package, and of those in runs/ which were trained for these models.
        folder: for everything that is written.
        judge: file or name of the attribute judge; None for none.
        megabytes: of the largest file that can be uploaded.

    Raises:
        SliderError: a slider that was named is not there or was made for another model.
    """
    if not megabytes > 0:
        raise SliderError(f"--upload_mb is {megabytes:g}; it must be above 0")
    backbone.load()
    if sliders is None:
        images = load_opening(find(backbone.modality), lambda said: not differs(said, backbone))
        base, name = "sliders.base_model", language.base_model  # which is not read yet
        texts = load_opening(find(language.modality), lambda said: said.get(base, name) == name)
    else:
        files = given(sliders, "--sliders")
        kinds = [formats.modality_of(one.path) for one in files]
        loaded = [one.load() for one in files]
        check_names(loaded)
        images, texts = (
            [dial for dial, kind in zip(loaded, kinds, strict=True) if kind == model.modality]
            for model in (backbone, language)
        )
        for dial in images:
            check_base(dial, backbone)
    most_bytes = round(megabytes * MEGABYTE)
    libraries = Library(images, backbone.modality), Library(texts, language.modality)
    return Session(backbone, language, *libraries, OutputFolder(folder), judge, most_bytes)
