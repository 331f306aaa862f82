"""Text from files and their names, made safe to show."""


def printable(text: str, replacement: str | None = None) -> str:
    """Replace control characters, which could command a terminal: file names may contain any.

    ``replacement``: one character in place of each; None: the character's escape, such as ``\\x1b``.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] if replacement is None else replacement
        for character in text
    )
