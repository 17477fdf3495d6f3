"""The caption file: for every figure, which item of which paper it is, on which model, and how it differs."""

from pathlib import Path

from gimkit.files import write_text

HEAD = """# Captions

Written by `python -m gimkit figures`. Each figure is a png, svg and pdf, with the plotted numbers (csv) and a
description (txt). Intervals are 95% bootstrap intervals over prompts. The README's pictures, demo-*
(`python -m gimkit demo`) and circuit-explorer-* (`python -m gimkit explore`), are no items of a paper and have no
caption here.
"""


def write_caption(path: Path, stem: str, alt: str, paper: str, made: str, differs: str) -> None:
    """Put one figure's section into the caption file, in alphabetical order; the other sections stay.

    >>> write_caption(Path("CAPTIONS.md"), "toy", "Bars ...", "GIM, Figure 1", "no model", "Own numbers.")
    """
    sections = {}
    if path.is_file():
        for section in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            sections[section.partition("\n")[0]] = section.strip()
    sections[stem] = (f"{stem}\n\n![{stem}]({stem}.png)\n\n- **Paper:** {paper}.\n- **Made on:** {made}.\n"
                      f"- **Shows:** {alt}\n- **Differs:** {differs}")
    text = "\n\n".join(f"## {sections[name]}" for name in sorted(sections))
    write_text(path, f"{HEAD}\n{text}\n")
