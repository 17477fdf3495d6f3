"""Tables that commands print and save."""

from pathlib import Path

import pandas


def show(table: pandas.DataFrame, csv: Path | None, title: str) -> None:
    """Print a table under its title, and save it where wanted."""
    print(f"{title}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    if csv:
        table.to_csv(csv, index=False, float_format="%.4g")
        print(f"wrote {csv}")
