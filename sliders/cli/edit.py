"""`sliders edit METHOD`: fit an edit in closed form and write its file."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliders import editors
from sliders.backbones.precision import Precision
from sliders.cli.defaults import Backbone
from sliders.errors import SliderError
from sliders.resources.paths import Source

if TYPE_CHECKING:
    from sliders.backbones.base import AbstractBackbone
    from sliders.editors.base import Editor


def methods() -> dict[str, str]:
    """Every editor by the name of its file in `sliders.editors`, with what it is in a line; none is imported."""
    found: dict[str, str] = {}
    for file in pkgutil.iter_modules(editors.__path__):
        source = Path(getattr(file.module_finder, "path", ""), f"{file.name}.py")
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(_named(base) == "Editor" for base in node.bases):
                found[file.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def _named(base: ast.expr) -> str:
    """The name of a base class, without its parameters."""
    base = base.value if isinstance(base, ast.Subscript) else base
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def editor(method: str) -> "type[Editor[Any]]":
    """The editor of a method, by its name."""
    from sliders.editors.base import Editor

    module = importlib.import_module(f"sliders.editors.{method}")
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    return next(kind for kind in kinds if issubclass(kind, Editor) and not inspect.isabstract(kind))


def commands(words: Sequence[str]) -> dict[str, str | Callable[..., None]]:
    """The command of the method that is among the words; without one, all as a help lists them."""
    known = methods()
    method = next((word for word in words if word in known), None)
    shown = {name: _listed(line) for name, line in known.items()} if method is None else {method: command(method)}
    return {"_help": "Fit an edit of a model's weights.", **shown}


def _listed(line: str) -> Callable[[], None]:
    """A method without its arguments, which are not known before its file is imported."""

    def edit() -> None:
        raise SliderError("name the method on the command line: sliders edit METHOD")

    edit.__doc__ = line
    return edit


def command(method: str) -> Callable[..., None]:
    """The command of one editor; its fields are the arguments ``--editor.FIELD``."""
    kind = editor(method)

    def edit(
        editor: Any = None,
        base: Source | None = None,
        out: Path | None = None,
        name: str = method,
        seed: int = 0,
        lora: bool = False,
        backbone: Backbone | None = None,
        device: str | None = None,
        dtype: Precision | None = None,
    ) -> None:
        from sliders.backbones.choice import DEFAULTS, choose

        if editor is None:
            raise SliderError(
                f"nothing to fit: give --config, such as configs/editors/{method}.yaml, or --editor.FIELD"
            )
        model = choose([], [], base, backbone, DEFAULTS[getattr(kind.of, "modality", "image")])
        model.place(device, dtype)
        fit(editor, model, name, out, seed, lora)

    edit.__annotations__["editor"] = kind | None
    edit.__doc__ = f"""{inspect.cleandoc(kind.__doc__ or "").splitlines()[0]}

        Args:
            editor: what to fit; `--editor.help` lists its fields.
            base: name, folder or hub id of the model; smollm2 for a method of language, and avatars for others, unless
                given.
            out: the .safetensors file to write; with --lora the folder to write into. runs/edits unless given.
            name: what to call it.
            seed: of what is drawn.
            lora: write a slider as the model's own library loads it, where the edit only adds to weights.
            backbone: the model as a class with settings, in place of the base.
            device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
            dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
        """
    return edit


def fit(
    editor: "Editor[Any]", backbone: "AbstractBackbone", name: str, out: Path | None, seed: int, lora: bool
) -> Path:
    """Fit and write an edit; returns where it is.

    Raises:
        SliderError: the model is of another kind, the file has another ending than an edit's, or the edit does more
            than a slider can.
    """
    from sliders.algebra.edit import Translation
    from sliders.algebra.slider import Slider
    from sliders.console import say
    from sliders.files import check_place
    from sliders.formats import edit as edit_file
    from sliders.formats.metadata import check_name
    from sliders.runtime.layers import displacements

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
