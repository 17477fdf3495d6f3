"""Where averaged gradients are taken: rows of a batch beyond its clean and corrupt ones."""

from gimkit.rules import Rules


def points(method: str | Rules, steps: int, b: int, layers: int) -> list[dict]:
    """Which groups of b rows each trace holds beyond clean and corrupt, and at which the gradient is taken.

    >>> points("ig-inputs", steps=2, b=8, layers=5)
    [{'extra': 1, 'rows': [8, 16], 'shares': [0.5], 'between': {}, 'weight': 1.0}]

    "ig-inputs" includes the corrupt end of the path, "nap-ig" the clean end.
    extra: how many groups. rows: first rows at which the gradient is taken. shares: where between the corrupt (0) and
    the clean (1) embedding the extra rows are. between: {(layer, part): {first row: share}}, the same for a part's
    output. weight: of the trace in the mean.
    """
    one = {"extra": 0, "rows": [0], "shares": [], "between": {}, "weight": 1.0}
    if method == "clean-corrupted":
        return [one | {"rows": [0, b]}]
    if method in ("ig-inputs", "gim-ig", "nap-ig"):
        end = 0 if method == "nap-ig" else b  # the first clean row, or the first corrupt one
        return [one | {"extra": steps - 1, "rows": [end, *((1 + k) * b for k in range(1, steps))],
                       "shares": [k / steps for k in range(1, steps)]}]
    if method == "gp":
        return [one | {"extra": steps, "rows": [(2 + k) * b for k in range(steps)]}]
    if method != "ig-activations":
        return [one]
    shares = [k / steps for k in range(1, steps + 1)]
    rows = [(2 + k) * b for k in range(steps)]
    groups = [(layer, part) for layer in range(layers) for part in ("attention", "mlp")]
    weight = 1 / (len(groups) + 1)
    chunks = [one | {"extra": steps, "rows": rows, "shares": shares, "weight": weight}]
    for group in groups:
        chunks.append(one | {"extra": steps, "rows": rows, "between": {group: dict(zip(rows, shares))},
                             "weight": weight})
    return chunks
