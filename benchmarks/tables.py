"""Tables that commands print and save."""

from pathlib import Path

import pandas

from gimkit.files import write_table


def show(table: pandas.DataFrame, csv: Path | None, title: str) -> None:
    """Print a table under its title, and save it where wanted.

    >>> show(pandas.DataFrame({"x": [0.5]}), None, "One number")
    One number
       x
    0.50

    Args:
        table: a pandas table.
        csv: the path of a file; None for none.
        title: a line.
    """
    print(f"{title}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    if csv:
        write_table(csv, table, digits=4)
        print(f"wrote {csv}")
