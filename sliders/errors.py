"""The one exception that a user of this package needs to catch."""


class SliderError(Exception):
    """Something asked for cannot be done; the message names the file, key or flag and says what to do instead."""
