"""Text from files and their names, made safe to show."""


def printable(text: str, replacement: str | None = None) -> str:
    """Replace control characters, which could command a terminal: file names may contain any.

    ``replacement``: one character in place of each; None: the character's escape, such as ``\\x1b``.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] if replacement is None else replacement
        for character in text
    )


def shorten_text(text: str, limit: int = 200) -> str:
    """Cut off what is too long for a message."""
    return text if len(text) <= limit else text[:limit] + "…"


def describe_error(error: BaseException) -> str:
    """Describe an exception of another library in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
