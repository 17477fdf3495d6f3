"""Six public data sets with a Yes or No answer: their place on the hub, their columns and their prompts."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from gimkit.errors import GimkitError

Rows = Iterable[dict]
Items = Iterator[tuple[str, str | None, bool | None]]  # passage, question or claim or None, label or None


class Table(NamedTuple):
    """Rows on the Hugging Face hub.

    Repositories with a loading script are read through the hub's parquet export, because `datasets` does not run such
    scripts any more.

    >>> TEXT_SETS["boolq"].tables[0].columns
    ('question', 'answer', 'passage')
    """

    hub: str
    split: str
    columns: tuple[str, ...]
    config: str | None = None  # a folder of the parquet export; None: the repository itself loads


class TextSet(NamedTuple):
    """A data set: its tables, the function that reads them, and the words of its prompts.

    >>> TEXT_SETS["twitter"].ask("What a day!", None).partition("\\n\\n")[2]
    'Tweet: What a day!'
    """

    tables: tuple[Table, ...]
    read: Callable[..., Items]  # from the tables' rows; no label where it is neither Yes nor No
    instruction: str  # one sentence
    passage: str  # the prompt's word for the passage
    question: str = ""  # and for the question

    def ask(self, passage: str, question: str | None) -> str:
        """Instruction, passage and question as one text."""
        parts = [self.instruction, f"{self.passage}: {passage.strip()}"]
        return "\n\n".join(parts + ([f"{self.question}: {question.strip()}"] if question else []))


def _label(row: dict, column: str, labels: dict) -> bool | None:
    """A row's label as True, False or None; GimkitError for a label that this data set should not have."""
    if row[column] not in labels:
        raise GimkitError(f"column {column!r} holds {row[column]!r}, but its labels are "
                          f"{', '.join(map(repr, labels))}; is this the right data set?")
    return labels[row[column]]


def _boolq(rows: Rows) -> Items:
    """Passages and questions; the labels are True and False."""
    for row in rows:
        question = row["question"].strip().rstrip("?") + "?"  # typed into a search engine, mostly without one
        yield row["passage"], question, _label(row, "answer", {True: True, False: False})


def _fever(rows: Rows) -> Items:
    """Claims, each with its evidence: lists of page, line and text, one for each sentence."""
    for row in rows:
        label = _label(row, "label", {"SUPPORTS": True, "REFUTES": False, "NOT ENOUGH INFO": None})
        yield " ".join(sentence[2] for sentence in row["evidence"]), row["claim"], label


def _movies(rows: Rows) -> Items:
    """Reviews; the labels are 0 and 1."""
    for row in rows:
        yield row["review"], None, _label(row, "label", {0: False, 1: True})


def _scifact(claims: Rows, corpus: Rows) -> Items:
    """Claims, each with the abstract annotated for it; without evidence a claim is neither Yes nor No."""
    abstracts = {str(row["doc_id"]): " ".join(row["abstract"]) for row in corpus}
    for row in claims:
        label = _label(row, "evidence_label", {"SUPPORT": True, "CONTRADICT": False, "": None, None: None})
        document = str(row["evidence_doc_id"])
        if label is not None and document not in abstracts:
            raise GimkitError(f"the corpus lacks document {document}, the evidence of the claim {row['claim']!r}")
        yield abstracts.get(document, ""), row["claim"], label


def _hatexplain(rows: Rows) -> Items:
    """Posts with three annotators' labels, 0 hateful, 1 normal, 2 offensive; two must agree on hateful or normal."""
    for row in rows:
        annotators = row["annotators"]  # in `datasets` a dict of lists, on its card a list of dicts
        votes = annotators["label"] if isinstance(annotators, dict) else [one["label"] for one in annotators]
        hateful, normal = votes.count(0) >= 2, votes.count(1) >= 2
        yield " ".join(row["post_tokens"]), None, hateful if hateful or normal else None


def _twitter(rows: Rows) -> Items:
    """Tweets; the labels are 0 negative, 1 neutral, 2 positive."""
    for row in rows:
        yield row["text"], None, _label(row, "label", {0: False, 1: None, 2: True})


Name = Literal["boolq", "fever", "movies", "scifact", "hatexplain", "twitter"]
TEXT_SETS: dict[Name, TextSet] = {
    "boolq": TextSet(
        (Table("google/boolq", "validation", ("question", "answer", "passage")),), _boolq,
        "Read the passage, then answer the question about it with Yes or No.", "Passage", "Question"),
    "fever": TextSet(
        (Table("copenlu/fever_gold_evidence", "test", ("claim", "label", "evidence")),), _fever,
        "Judge by the evidence alone whether the claim holds: Yes if it does, No if it does not.",
        "Evidence", "Claim"),
    "movies": TextSet(
        (Table("eraser-benchmark/movie_rationales", "test", ("review", "label"), "default"),), _movies,
        "Judge whether whoever wrote this review liked the film: Yes or No.", "Review"),
    "scifact": TextSet(
        (Table("allenai/scifact", "validation", ("claim", "evidence_doc_id", "evidence_label"), "claims"),
         Table("allenai/scifact", "train", ("doc_id", "abstract"), "corpus")), _scifact,
        "Judge by the abstract whether the claim is right: Yes if it is, No if it is not.", "Abstract", "Claim"),
    "hatexplain": TextSet(
        (Table("Hate-speech-CNERG/hatexplain", "test", ("annotators", "post_tokens"), "plain_text"),), _hatexplain,
        "Judge whether this post attacks people for the group that they belong to, such as their origin, religion or "
        "gender: Yes or No.", "Post"),
    "twitter": TextSet(
        (Table("mteb/tweet_sentiment_extraction", "train", ("text", "label")),), _twitter,
        "Judge whether the feeling in this tweet is a good one: Yes, or No if it is a bad one.", "Tweet"),
}
