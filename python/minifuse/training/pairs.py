"""Training data: pairs of texts that belong together, or pairs that people have scored."""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minifuse.files.texts import number_of, read_header, read_objects, read_rows
from minifuse.search import mining, similarity

__all__ = ["TrainingPairs", "batches", "hard_negatives", "read_training_pairs"]

# Columns that are understood: the two sides, then a score, a label or hard negatives.
_SIDES = (
    ("anchor", "positive"),
    ("question", "answer"),
    ("query", "document"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
)


_HITS_AT_ONCE = 1 << 20  # of the search for hard negatives
# Labels of pairs; true and false are JSON's.
_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True)
class TrainingPairs:
    """Anchors and what belongs to each.

    Attributes:
        anchors: n texts.
        positives: n texts, the right answer to each anchor.
        negatives: n texts that are near but wrong, or empty.
        scores: n human scores instead (then a positive is only the other side), or empty.
    """

    anchors: list[str]
    positives: list[str]
    negatives: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("positives", "negatives", "scores"):
            values = getattr(self, name)
            if len(values) not in (len(self.anchors), 0 if name != "positives" else -1):
                raise ValueError(
                    f"{len(self.anchors)} anchors and {len(values)} {name}, wanted as many"
                )
        if not self.anchors:
            raise ValueError("no pairs, wanted at least one")
        if self.scores and self.negatives:
            raise ValueError("scored pairs have no negatives")
        if self.scores and len(set(self.scores)) == 1:
            raise ValueError(f"all scores are {self.scores[0]}: there is no order to learn")

    def __len__(self) -> int:
        return len(self.anchors)

    def digest(self) -> str:
        """Return a hash of the pairs, which identifies them."""
        digest = hashlib.sha256()
        for values in (self.anchors, self.positives, self.negatives, map(str, self.scores)):
            for value in values:
                digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        return digest.hexdigest()


def read_training_pairs(
    path: str | Path,
    columns: tuple[str, str] | None = None,
    seed: int = 0,
    labels_are_scores: bool = False,
) -> TrainingPairs:
    """Pairs of a .jsonl, .tsv or .csv.

    Two columns (anchor and positive, question and answer, query and document, sentence1 and
    sentence2, question1 and question2, or the ones that are named), and where it is there
    ``negative`` (a hard negative), ``score`` (of people) or ``label`` (only the pairs with 1 are
    kept). A file of ``label`` and ``text`` gives each text another one with the same label.

    Args:
        path: the file.
        columns: the names of the two sides.
        seed: of the partners that texts with labels get.
        labels_are_scores: keep all pairs of a file with ``label``, which becomes their score.

    Raises:
        FileNotFoundError: no such file.
        ValueError: columns that are not these, a value that is none (the line is named), one label
            only, or no pairs at all.
    """
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        objects = list(read_objects(path))
        if not objects:
            raise ValueError(f"{path}: no pairs, wanted at least one")
        names = list(objects[0][1])

        def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
            for number, row in objects:
                for name in wanted:
                    if not isinstance(row.get(name), (str, int, float)):
                        raise ValueError(f"{path}, line {number}: {name!r} is no string")
                yield number, [str(row[name]) for name in wanted]
    else:
        names = read_header(path)

        def rows(wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
            return read_rows(path, wanted)

    if columns is None:
        sides = next((pair for pair in _SIDES if set(pair) <= set(names)), None)
        if sides is None:
            if {"label", "text"} <= set(names):
                return _partners([row for _, row in rows(["label", "text"])], path, seed)
            known = "; ".join(", ".join(pair) for pair in _SIDES)
            raise ValueError(
                f"{path}: the columns are {', '.join(names)}; wanted two of {known}; or label, text"
            )
        columns = sides
    extra = next((name for name in ("score", "negative", "label") if name in names), None)
    scored = "label" if extra == "label" and labels_are_scores else "score"
    wanted = [*columns, *([extra] if extra else [])]
    values = list(rows(wanted))
    anchors, positives = [row[0] for _, row in values], [row[1] for _, row in values]
    if extra == scored:
        scores = [number_of(row[2], scored, path, number) for number, row in values]
        return TrainingPairs(anchors, positives, scores=scores)
    if extra == "negative":
        return TrainingPairs(anchors, positives, [row[2] for _, row in values])
    if extra == "label":
        for number, row in values:
            if row[2].lower() not in _YES + _NO:
                raise ValueError(
                    f"{path}, line {number}: label is {row[2]!r:.60}, wanted 1 for texts that "
                    "belong together and 0 for others"
                )
        kept = [row for _, row in values if row[2].lower() in _YES]
        if not kept:
            raise ValueError(f"{path}: no pair has the label 1")
        return TrainingPairs([row[0] for row in kept], [row[1] for row in kept])
    return TrainingPairs(anchors, positives)


def hard_negatives(
    encode: Callable[[Sequence[str]], npt.NDArray[np.float32]],
    pairs: TrainingPairs,
    count: int,
    most: float = 0.95,
) -> list[list[str]]:
    """Wrong texts for each pair that are near its anchor, the nearest first.

    A text that is nearer than the right one is often right itself, so only texts whose cosine with
    the anchor is at most a part of the right one's count (Moreira et al. 2024, NV-Retriever).

    Args:
        encode: texts -> vectors.
        pairs: anchors and right texts; equal anchors have each other's right texts.
        count: texts for each pair, at most.
        most: the part, above 0.

    Returns:
        A list a pair.
    """
    texts = list(dict.fromkeys(pairs.positives))
    place = {text: i for i, text in enumerate(texts)}
    vectors = encode([*pairs.anchors, *texts])
    anchors, answers = vectors[: len(pairs)], vectors[len(pairs) :]
    right: dict[str, set[int]] = defaultdict(set)
    for anchor, positive in zip(pairs.anchors, pairs.positives, strict=True):
        right[anchor].add(place[positive])
    own = similarity.pairwise_cos_sim(anchors, answers[[place[text] for text in pairs.positives]])
    anchors, answers = similarity.unit_rows(anchors), similarity.unit_rows(answers)
    pairs_of: dict[str, list[int]] = defaultdict(list)
    for number, anchor in enumerate(pairs.anchors):
        pairs_of[anchor].append(number)
    # Anchors with about as many right answers are searched for together: one that has thousands
    # needs a long list of hits, and the others do not.
    alike: dict[int, list[str]] = defaultdict(list)
    for anchor, numbers in right.items():
        alike[(4 * count + len(numbers) - 1).bit_length()].append(anchor)
    negatives: list[list[str]] = [[] for _ in pairs.anchors]
    for bits, group in alike.items():
        wide = min(len(texts), 1 << bits)
        step = max(1, _HITS_AT_ONCE // wide)
        for first in range(0, len(group), step):
            some = group[first : first + step]
            rows = anchors[[pairs_of[anchor][0] for anchor in some]]  # equal ones have the same
            found = mining.semantic_search(
                rows, answers, top_k=wide, score_function=similarity.dot_score
            )
            for anchor, hits in zip(some, found, strict=True):
                wrong = [hit for hit in hits if hit["corpus_id"] not in right[anchor]]
                rising = [-hit["score"] for hit in wrong]
                for number in pairs_of[anchor]:
                    begin = bisect.bisect_left(rising, -most * own[number])
                    near = wrong[begin : begin + count]
                    negatives[number] = [texts[int(hit["corpus_id"])] for hit in near]
    return negatives


def _partners(rows: list[list[str]], path: Path, seed: int) -> TrainingPairs:
    groups: dict[str, list[str]] = defaultdict(list)
    for label, text in rows:
        groups[label].append(text)
    if len(groups) < 2:
        raise ValueError(f"{path}: {len(groups)} label, wanted at least two to tell apart")
    rng = np.random.default_rng(seed)
    anchors, positives = [], []
    for texts in groups.values():
        order = rng.permutation(len(texts))
        for i, j in zip(order, np.roll(order, 1), strict=True):
            if texts[i] != texts[j]:
                anchors.append(texts[i])
                positives.append(texts[j])
    if not anchors:
        raise ValueError(f"{path}: no label has two different texts")
    return TrainingPairs(anchors, positives)


def batches(num_pairs: int, batch_size: int, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """The pairs of each step of an epoch: an order that seed and epoch alone decide."""
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs)
    return [order[first : first + batch_size] for first in range(0, num_pairs, batch_size)]
