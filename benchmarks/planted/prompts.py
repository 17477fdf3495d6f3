"""The compiled programs' prompts: pairs in which one token decides the answer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "models"
START = "<start>"


def tokenizer_of(words: dict) -> PreTrainedTokenizerFast:
    """Words between spaces.

    >>> tokenizer_of({START: 0, "a": 1}).tokenize("a a")
    ['a', 'a']
    """
    pieces = Tokenizer(models.WordLevel(words, unk_token=START))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token=START)


class Program(NamedTuple):
    """A compiled program: its words, its longest prompt, and how a pair is drawn.

    >>> PROGRAMS["pattern"].pairs(1)[0]
    ('<start> b a b', '<start> b c b', 'True', 'False')
    """

    tokens: Sequence[str]
    length: int
    draw: Callable[[Random], tuple[str, str, str, str]]

    def pairs(self, n: int, seed: int = 0) -> list[tuple[str, str, str, str]]:
        """n pairs as (clean, corrupt, good, bad), texts of equal length; pairs may repeat."""
        rng = Random(seed)
        return [self.draw(rng) for _ in range(n)]


def _pair(clean: Sequence[str], corrupt: Sequence[str], good: object, bad: object) -> tuple[str, str, str, str]:
    return " ".join([START, *clean]), " ".join([START, *corrupt]), str(good), str(bad)


def _induction(rng: Random) -> tuple:
    """a b ... a -> b; corrupt: the second a is another token that occurred."""
    tokens = rng.sample("abcdef", 4)
    first, second = rng.sample(range(3), 2)
    return _pair([*tokens, tokens[first]], [*tokens, tokens[second]], tokens[first + 1], tokens[second + 1])


def _histogram(rng: Random) -> tuple:
    """How often the last token occurred; corrupt: one of its occurrences is another token."""
    token, other = rng.sample("abc", 2)
    times = rng.choice([2, 3])
    tokens = [token] * times + [other] * (4 - times)
    rng.shuffle(tokens)
    changed = list(tokens)
    changed[rng.choice([i for i, one in enumerate(tokens) if one == token])] = other
    return _pair([*tokens, token], [*changed, token], times + 1, times)


def _reversal(rng: Random) -> tuple:
    """a b c x x x -> the first token at the last position; corrupt: another first token."""
    first, second, third, other = rng.sample("abcd", 4)
    rest = [rng.choice("abcd") for _ in range(3)]
    return _pair([first, second, third, *rest], [other, second, third, *rest], first, other)


def _pattern(rng: Random) -> tuple:
    """... a b -> True; corrupt: c b."""
    before = rng.choice("abc")
    return _pair([before, "a", "b"], [before, "c", "b"], True, False)


def _brackets(rng: Random) -> tuple:
    """More closing than opening brackets -> True; corrupt: one closing bracket is an opening one."""
    tokens = ["(", "(", ")", ")", ")"]
    rng.shuffle(tokens)
    changed = list(tokens)
    changed[tokens.index(")")] = "("
    return _pair(tokens, changed, True, False)


def _other_name(rng: Random) -> tuple:
    """A B x A x -> B; corrupt: B is the repeated name."""
    first, second = rng.sample("ABC", 2)
    again = rng.choice([first, second])
    other = second if again == first else first
    return _pair([first, second, "x", again, "x"], [first, second, "x", other, "x"], other, again)


PROGRAMS = {
    "induction": Program("abcdef", 5, _induction), "histogram": Program("abc", 5, _histogram),
    "reversal": Program("abcd", 6, _reversal), "pattern": Program("abc", 3, _pattern),
    "brackets": Program("()", 5, _brackets), "other-name": Program("ABCx", 5, _other_name),
}
