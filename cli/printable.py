"""Text of someone else's, for a terminal."""


def printable(text: str) -> str:
    """Control characters, which could command a terminal, as escapes: paths are whatever the input's files were called."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
