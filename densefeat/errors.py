"""What went wrong, with the value, and what to do instead. The command line prints the message and exits with ``exit_code``."""


class DensefeatError(Exception):
    """Any error that densefeat raises on purpose; one line, meant for the person who ran it."""

    exit_code = 1


class UsageError(DensefeatError, ValueError):
    """Wrong use: an unknown name, an argument out of range, a folder that is not there."""

    exit_code = 2


class BackendError(UsageError):
    """A backend that does not exist, or cannot run this network here."""


class MissingColumn(UsageError):
    """A column, or an extension of tar members, that the input does not have."""


class UnknownRange(UsageError):
    """An image that does not say which of its values are black and white, so that the user has to."""


class WeightsError(DensefeatError):
    """Weights that cannot be fetched, read, or fitted to the model."""


class DecodeError(DensefeatError):
    """One image that cannot be turned into pixels.

    ``stage`` is the step that failed: ``read``, ``decode`` or ``transform``; or ``memory``, where decoding would take too much.
    """

    def __init__(self, reason: str, stage: str = "decode") -> None:
        super().__init__(reason)
        self.stage = stage

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return DecodeError, (str(self), self.stage)


class OutputError(DensefeatError):
    """Results that cannot be written."""
