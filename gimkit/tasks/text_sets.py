"""Six public data sets with a Yes or No answer: where they are, what their columns mean, how they are asked."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from gimkit.errors import GimkitError


class Table(NamedTuple):
    """Rows on the Hugging Face hub. config: a folder of the hub's parquet export; None: the repository itself loads.

    Repositories with a loading script are read through the export, for `datasets` runs no scripts any more.
    """

    hub: str
    split: str
    columns: tuple[str, ...]
    config: str | None = None


class TextSet(NamedTuple):
    """read: the tables' rows -> examples (passage, question or claim or None, label; None: neither Yes nor No).

    instruction: one sentence. passage, question: what the prompt calls them.
    """

    tables: tuple[Table, ...]
    read: Callable[..., Iterator[tuple[str, str | None, bool | None]]]
    instruction: str
    passage: str
    question: str = ""

    def ask(self, passage: str, question: str | None) -> str:
        """The question as text, without a place for the answer."""
        parts = [self.instruction, f"{self.passage}: {passage.strip()}"]
        return "\n\n".join(parts + ([f"{self.question}: {question.strip()}"] if self.question else []))


def meaning(row: dict, column: str, labels: dict) -> bool | None:
    """What a row's label says; a label that this data set should not have is an error."""
    if row[column] not in labels:
        raise GimkitError(f"column {column!r} holds {row[column]!r}, but its labels are "
                          f"{', '.join(map(repr, labels))}; is this the right data set?")
    return labels[row[column]]


def boolq(rows):
    for row in rows:
        question = row["question"].strip().rstrip("?") + "?"  # as typed into a search engine: mostly without one
        yield row["passage"], question, meaning(row, "answer", {True: True, False: False})


def fever(rows):
    """Evidence: lists of page, line, text, one a sentence."""
    for row in rows:
        label = meaning(row, "label", {"SUPPORTS": True, "REFUTES": False, "NOT ENOUGH INFO": None})
        yield " ".join(sentence[2] for sentence in row["evidence"]), row["claim"], label


def movies(rows):
    for row in rows:
        yield row["review"], None, meaning(row, "label", {0: False, 1: True})


def scifact(claims, corpus):
    """A claim and the abstract that was annotated for it; claims without evidence are neither Yes nor No."""
    abstracts = {str(row["doc_id"]): " ".join(row["abstract"]) for row in corpus}
    for row in claims:
        label = meaning(row, "evidence_label", {"SUPPORT": True, "CONTRADICT": False, "": None, None: None})
        document = str(row["evidence_doc_id"])
        if label is not None and document not in abstracts:
            raise GimkitError(f"the corpus lacks document {document}, the evidence of the claim {row['claim']!r}")
        yield abstracts.get(document, ""), row["claim"], label


def hatexplain(rows):
    """Three annotators: 0 hateful, 1 normal, 2 offensive; two of them must agree on hateful or on normal."""
    for row in rows:
        annotators = row["annotators"]  # a dict of lists as `datasets` gives it, a list of dicts as its card shows it
        votes = annotators["label"] if isinstance(annotators, dict) else [one["label"] for one in annotators]
        hateful, normal = votes.count(0) >= 2, votes.count(1) >= 2
        yield " ".join(row["post_tokens"]), None, hateful if hateful or normal else None


def twitter(rows):
    for row in rows:
        yield row["text"], None, meaning(row, "label", {0: False, 1: None, 2: True})


TEXT_SETS = {
    "boolq": TextSet(
        (Table("google/boolq", "validation", ("question", "answer", "passage")),), boolq,
        "Read the passage, then answer the question about it with Yes or No.", "Passage", "Question"),
    "fever": TextSet(
        (Table("copenlu/fever_gold_evidence", "test", ("claim", "label", "evidence")),), fever,
        "Judge by the evidence alone whether the claim holds: Yes if it does, No if it does not.",
        "Evidence", "Claim"),
    "movies": TextSet(
        (Table("eraser-benchmark/movie_rationales", "test", ("review", "label"), "default"),), movies,
        "Judge whether whoever wrote this review liked the film: Yes or No.", "Review"),
    "scifact": TextSet(
        (Table("allenai/scifact", "validation", ("claim", "evidence_doc_id", "evidence_label"), "claims"),
         Table("allenai/scifact", "train", ("doc_id", "abstract"), "corpus")), scifact,
        "Judge by the abstract whether the claim is right: Yes if it is, No if it is not.", "Abstract", "Claim"),
    "hatexplain": TextSet(
        (Table("Hate-speech-CNERG/hatexplain", "test", ("annotators", "post_tokens"), "plain_text"),), hatexplain,
        "Judge whether this post attacks people for the group that they belong to, such as their origin, religion or "
        "gender: Yes or No.", "Post"),
    "twitter": TextSet(
        (Table("mteb/tweet_sentiment_extraction", "train", ("text", "label")),), twitter,
        "Judge whether the feeling in this tweet is a good one: Yes, or No if it is a bad one.", "Tweet"),
}
