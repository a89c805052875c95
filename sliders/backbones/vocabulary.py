"""Whether a tokenizer belongs to its model."""

from typing import Any

from sliders.errors import SliderError, one_line


def check_vocabulary(tokenizer: Any, model: Any, called: str) -> None:
    """Refuse a tokenizer that has tokens without a vector.

    Args:
        tokenizer: of transformers.
        model: that reads its tokens.
        called: the model in errors.

    Raises:
        SliderError: a token's number is not below the number of the model's vectors.
    """
    known, ids = model.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    token = max(ids, key=lambda token: ids[token], default=None)
    if token is not None and ids[token] >= known:
        raise SliderError(
            f"the tokenizer of {called} has the token {token!r} with number {ids[token]}, but the model has "
            f"vectors for {known} tokens; it is another model's, or got tokens without the model being resized"
        )


def check_template(tokenizer: Any, called: str) -> None:
    """Refuse a chat template that cannot be rendered.

    Args:
        tokenizer: with a template.
        called: the model in errors.

    Raises:
        SliderError: a user's message alone is not rendered.
    """
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's own kinds, and whatever a template does to its values
        said = one_line(f"{type(error).__name__}: {error}")
        raise SliderError(
            f"the chat template of {called} (tokenizer_config.json or chat_template.jinja) is broken: {said}; mend it, "
            "or set chat to false for prompts without a template"
        ) from error
