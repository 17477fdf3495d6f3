"""The one exception that gimkit raises for bad input."""


class GimkitError(ValueError):
    """Bad input, told in one line: what was wrong, and the way out.

    >>> raise GimkitError("unknown method 'gmi'; use one of gim, gradient, ig")
    Traceback (most recent call last):
    gimkit.errors.GimkitError: unknown method 'gmi'; use one of gim, gradient, ig
    """
