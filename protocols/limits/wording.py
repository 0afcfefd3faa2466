"""How a text that is no rate and no period is refused."""

SHOWN_LENGTH_MAX = 80


def refused(text: str, wanted: str) -> ValueError:
    """The error that names the text and says what is wanted."""
    shown = text if len(text) <= SHOWN_LENGTH_MAX else text[: SHOWN_LENGTH_MAX - 3] + "..."
    return ValueError(f"{shown!r} is not allowed: {wanted}")
