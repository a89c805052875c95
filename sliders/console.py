"""What a command shows: its own words, and not the chatter of the libraries below."""

import logging
import warnings

from rich.console import Console


def say(*lines: object) -> None:
    """Print lines (or rich tables) without wrapping paths."""
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def hush_libraries() -> None:
    """Silence loading bars, advice and known harmless warnings of the libraries; their errors still show."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    diffusers_log.set_verbosity_error()
    diffusers_log.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the model is frozen
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")  # a command may train, too
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
