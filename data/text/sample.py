"""Write text that a language model says by itself: `python -m data.text.sample`.

The second moments of a layer's inputs (`sliders.language.covariance`) are taken over it.  One response a line, to
messages drawn from `prompts/`; the neutral text, on which perplexity is measured, has no part in it.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli

from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import read_prompts

HERE = Path(__file__).parent


def main(
    model: str = "smollm2", out: Path = HERE / "sampled.txt", responses: int = 192, tokens: int = 96, batch: int = 48
) -> None:
    """Sample and write.

    Args:
        model: who speaks.
        out: the text file.
        responses: how many.
        tokens: of the longest.
        batch: sampled together.
    """
    backbone = CausalLMBackbone(model)
    backbone.load()
    messages = sorted({line for file in (HERE / "prompts").glob("*.txt") for line in read_prompts(file)})
    order = torch.randperm(len(messages), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [f"# Written by {model} itself; see data/text/sample.py"]
    for start in range(0, responses, batch):
        seeds = range(start, min(start + batch, responses))
        asked = backbone.encode([messages[order[seed % len(order)]] for seed in seeds])
        said = backbone.text(backbone.respond(asked, seeds, tokens))
        lines += [" ".join(text.split()) for text in said if text]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
