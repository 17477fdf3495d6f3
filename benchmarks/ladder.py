"""The rows of GIM's ablation table: every subset of its rules."""

from gimkit.rules import RULES, SPLIT, Rules

LADDER = {
    "gradient": RULES["gradient"],
    "freeze": RULES["freeze"],
    "split": Rules(**SPLIT),
    "temperature": RULES["temperature"],
    "freeze+split": Rules(freeze_norm=True, **SPLIT),
    "freeze+temperature": Rules(freeze_norm=True, temperature=2.0),
    "split+temperature": Rules(temperature=2.0, **SPLIT),
    "gim": RULES["gim"],
}
