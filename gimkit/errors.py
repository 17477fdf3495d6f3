"""The one exception that gimkit raises for bad input."""


class GimkitError(ValueError):
    """Bad input, told in one line: what was wrong, and the way out.

    >>> raise GimkitError("unknown method 'gmi'; use one of gim, gradient, ig")
    Traceback (most recent call last):
    gimkit.errors.GimkitError: unknown method 'gmi'; use one of gim, gradient, ig
    """


def require_finite(values, what: str = "the scores") -> None:
    """Raise GimkitError when a tensor holds NaN or infinity.

    >>> require_finite(torch.tensor([1.0, 2.0]))
    """
    if not bool(values.isfinite().all()):
        raise GimkitError(f"{what} contain NaN or infinite values; check the model's weights and dtype")


def check_whole(name: str, value: int, least: int = 1) -> None:
    """Refuse a number that is not whole or below the least that makes sense."""
    if not isinstance(value, int) or value < least:
        raise GimkitError(f"{name} must be a whole number of at least {least}, not {value!r}")
