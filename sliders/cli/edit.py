"""`sliders edit METHOD`: fit an edit in closed form and write its file."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

from sliders import editors
from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.placement import Precision
from sliders.cli.defaults import BASE, LANGUAGE
from sliders.console import say
from sliders.editors.base import Editor
from sliders.errors import SliderError
from sliders.files import check_place
from sliders.formats import edit as edit_file
from sliders.formats.metadata import check_name
from sliders.runtime.layers import displacements


def methods() -> dict[str, type[Editor]]:
    """Every editor, by the name of its file in `sliders.editors`."""
    found: dict[str, type[Editor]] = {}
    for file in pkgutil.iter_modules(editors.__path__):
        module = importlib.import_module(f"sliders.editors.{file.name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Editor) and kind.__module__ == module.__name__ and not inspect.isabstract(kind):
                found[file.name] = kind
    return found


def edit_commands() -> dict[str, str | Callable[..., None]]:
    """A command for every editor."""
    return {"_help": "Fit an edit of a model's weights.", **{n: _command(n, kind) for n, kind in methods().items()}}


def _command(method: str, kind: type[Editor]) -> Callable[..., None]:
    """The command of one editor; its fields are the arguments ``--editor.FIELD``."""
    default = LANGUAGE if getattr(kind.of, "modality", None) == LANGUAGE.modality else BASE

    def edit(
        editor: Editor | None = None,
        backbone: AbstractBackbone = default,
        out: Path | None = None,
        name: str = method,
        seed: int = 0,
        lora: bool = False,
        device: str | None = None,
        dtype: Precision | None = None,
    ) -> None:
        if editor is None:
            raise SliderError(
                f"nothing to fit: give --config, such as configs/editors/{method}.yaml, or --editor.FIELD"
            )
        backbone.place(device, dtype)
        fit(editor, backbone, name, out, seed, lora)

    edit.__annotations__["editor"] = kind | None
    edit.__doc__ = f"""{inspect.cleandoc(kind.__doc__ or "").splitlines()[0]}

        Args:
            editor: what to fit; `--editor.help` lists its fields.
            backbone: the model.
            out: the .safetensors file to write; with --lora the folder to write into. runs/edits unless given.
            name: what to call it.
            seed: of what is drawn.
            lora: write a slider as the model's own library loads it, where the edit only adds to weights.
            device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
            dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
        """
    return edit


def fit(editor: Editor, backbone: AbstractBackbone, name: str, out: Path | None, seed: int, lora: bool) -> Path:
    """Fit and write an edit; returns where it is.

    Raises:
        SliderError: the model is of another kind, the file has another ending than an edit's, or the edit does more
            than a slider can.
    """
    check_name(name, "--name")
    editor.check(backbone)
    file = out or Path("runs") / "edits" / f"{name}.safetensors"
    if not lora:
        edit_file.check_place(file)
    check_place(file.parent if lora and out is None else file, folder=lora)
    backbone.load()
    edit = editor.fit(backbone, seed)
    if not any(update.norm() > 0 for _, update in displacements(backbone, name, edit)):
        raise SliderError(f"{name} changes nothing: {editor.describe()}; nothing is written")
    said = editor.metadata(backbone, seed, edit.modules)
    if not lora:
        edit_file.save(name, edit, file, said)
    elif isinstance(edit, Translation):
        file = backbone.save_slider(Slider(name, edit, said), out or Path("runs") / "edits")
    else:
        raise SliderError(f"{name} does more than add to weights, so that no LoRA holds it; leave out --lora")
    say(f"fitted  {editor.describe()}", f"layers  {len(edit.modules)}, first {edit.modules[0]}", f"edit    {file}")
    return file
