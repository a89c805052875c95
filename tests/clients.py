"""What plain diffusers and PEFT make of a slider's file, in a process that never imports this package."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

PROMPTS, SEEDS, STEPS, GUIDANCE = ["a person", "a person, with long hair"], [1, 2], 8, 4.0
"""Of the pictures."""
TEXT = "The day was long, and I felt"
"""Whose logits are asked."""

_PICTURES = """
pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32, **dict.fromkeys(without))
pipe.set_progress_bar_config(disable=True)
def pictures():
    noise = [torch.Generator().manual_seed(s) for s in seeds]
    how = {"guidance_scale": guidance, "num_inference_steps": steps, "output_type": "pt"}
    return pipe(prompts, generator=noise, **how, **call).images
made = {"base": pictures()}
pipe.load_lora_weights(file, adapter_name="slider")
for dial in dials:
    pipe.set_adapters(["slider"], [dial])
    made[str(dial)] = pictures()
"""
_LOGITS = """
lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
tokens = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")
with torch.no_grad():
    made = {"base": lm(**tokens).logits}
    lm = PeftModel.from_pretrained(lm, file).double()
    for dial in dials:
        for layer in lm.modules():
            if hasattr(layer, "set_scale"):
                layer.set_scale("default", dial)
        made[str(dial)] = lm(**tokens).logits
"""


def _client(imports: str, body: str, out: Path, **known: object) -> dict[str, Tensor]:
    """What a script makes."""
    begin = f"import json, sys, torch\n{imports}\nglobals().update(json.loads(sys.argv[1]))\n"
    end = "\nassert not any(name.split('.')[0] == 'sliders' for name in sys.modules)\ntorch.save(made, sys.argv[2])\n"
    command = [sys.executable, "-c", begin + body + end, json.dumps(known), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


def pictures(
    model: Path,
    slider: Path,
    dials: Sequence[float],
    folder: Path,
    call: Mapping[str, object] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Tensor]:
    """By diffusers, in [0, 1]: the base's, and for each dial the slider's.

    Args:
        model: folder of the pipeline.
        slider: file.
        dials: where it is turned to.
        folder: for what is passed on.
        call: further arguments of the pipeline's call.
        without: parts that the pipeline was saved without.
    """
    known = {"prompts": PROMPTS, "seeds": SEEDS, "steps": STEPS, "guidance": GUIDANCE, "dials": list(dials)}
    known |= {"call": dict(call or {}), "without": list(without)}
    imports = "from diffusers import DiffusionPipeline"
    return _client(
        imports, _PICTURES, folder / "pictures.pt", model=str(model.resolve()), file=str(slider.resolve()), **known
    )


def logits(base: Path, slider: Path, dials: Sequence[float], folder: Path) -> dict[str, Tensor]:
    """By PEFT, in float64: the base's, and for each dial the slider's."""
    imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    known = {"model": str(base.resolve()), "file": str(slider.resolve()), "dials": list(dials), "text": TEXT}
    return _client(imports, _LOGITS, folder / "logits.pt", **known)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The model as the client of `logits` has it: in float32 thirty blocks round by as much as files may differ."""
    model.double()
    try:
        yield
    finally:
        model.float()
