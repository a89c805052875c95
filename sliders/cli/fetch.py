"""`sliders fetch`: a small language model, downloaded and converted once."""


def fetch(name: str) -> None:
    """Download a small language model and convert it, once; it is called by itself where one is needed.

    Args:
        name: of the model, such as smollm2.
    """
    from sliders.console import say
    from sliders.resources import fetch as fetching

    say(f"model   {fetching.fetch(name)}")
