"""evaluate_retrieval against the definitions, written out slowly, and the folders it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from minifuse.evaluation import RetrievalTask, evaluate_retrieval, read_retrieval_task


class Vectors:
    """A model that looks its vectors up."""

    def __init__(self, queries, documents):
        self._queries, self._documents = queries, documents

    def encode_query(self, texts):
        return np.array([self._queries[text] for text in texts], np.float32)

    def encode_document(self, texts):
        return np.array([self._documents[text] for text in texts], np.float32)


def test_by_hand():
    # Cosines with the query 1.0, 0.8, 0.6, 0.0: the ranks are the documents' order.
    documents = {"a": [1, 0], "b": [0.8, 0.6], "c": [0.6, 0.8], "d": [0, 1]}
    task = RetrievalTask(
        corpus={name: name for name in documents},
        queries={"q": "q", "nobody judged": "q"},
        relevance={"q": {"a": 0, "b": 1, "d": 2, "not in the corpus": 1}},
    )
    scores = evaluate_retrieval(Vectors({"q": [1, 0]}, documents), task)
    gain = 1 / math.log2(3) + 2 / math.log2(5)
    best = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert scores.ndcg_at_10 == pytest.approx(gain / best)
    assert scores.recall_at_10 == scores.recall_at_100 == pytest.approx(2 / 3)
    assert scores.mrr_at_10 == pytest.approx(1 / 2)
    assert (scores.num_queries, scores.num_documents) == (1, 4)


def test_found_below_the_cut():
    angles = {f"d{rank}": rank / 100 for rank in range(1, 13)}
    documents = {name: [math.cos(angle), math.sin(angle)] for name, angle in angles.items()}
    task = RetrievalTask({d: d for d in documents}, {"q": "q"}, {"q": {"d11": 1}})
    scores = evaluate_retrieval(Vectors({"q": [1, 0]}, documents), task)
    assert (scores.ndcg_at_10, scores.recall_at_10, scores.mrr_at_10) == (0, 0, 0)
    assert scores.recall_at_100 == 1


def test_against_the_definitions():
    rng = np.random.default_rng(3)
    num_documents, num_queries = 150, 20
    documents = {f"d{i}": rng.normal(size=8) for i in range(num_documents)}
    queries = {f"q{i}": rng.normal(size=8) for i in range(num_queries)}
    relevance = {
        query: {f"d{i}": int(rng.integers(0, 4)) for i in rng.choice(num_documents, 30, False)}
        for query in queries
    }
    task = RetrievalTask({d: d for d in documents}, {q: q for q in queries}, relevance)
    scores = evaluate_retrieval(Vectors(queries, documents), task)

    ndcg, recall, deep, reciprocal = [], [], [], []
    for query, vector in queries.items():
        grades = relevance[query]
        cosine = {d: v @ vector / np.linalg.norm(v) for d, v in documents.items()}
        ranked = sorted(cosine, key=cosine.get, reverse=True)
        gain = sum(grades.get(d, 0) / math.log2(i + 2) for i, d in enumerate(ranked[:10]))
        ideal = sorted(grades.values(), reverse=True)[:10]
        ndcg.append(gain / sum(grade / math.log2(i + 2) for i, grade in enumerate(ideal)))
        relevant = {d for d, grade in grades.items() if grade > 0}
        recall.append(len(relevant & set(ranked[:10])) / len(relevant))
        deep.append(len(relevant & set(ranked[:100])) / len(relevant))
        hits = [i + 1 for i, d in enumerate(ranked[:10]) if d in relevant]
        reciprocal.append(1 / hits[0] if hits else 0)
    assert scores.ndcg_at_10 == pytest.approx(np.mean(ndcg))
    assert scores.recall_at_10 == pytest.approx(np.mean(recall))
    assert scores.recall_at_100 == pytest.approx(np.mean(deep))
    assert scores.mrr_at_10 == pytest.approx(np.mean(reciprocal))


def write_folder(
    folder,
    corpus=None,
    queries=None,
    header="query-id\tcorpus-id\tscore\n",
    qrels="q1\td1\t1\n",
    at="qrels.tsv",
):
    corpus = corpus or [{"_id": "d1", "title": "A", "text": "dog"}, {"_id": "d2", "text": "a sky"}]
    queries = queries or [{"_id": "q1", "text": "a dog"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / at).parent.mkdir(exist_ok=True)
    (folder / at).write_text(header + qrels)


@pytest.mark.parametrize("at", ["qrels.tsv", "qrels/test.tsv"])
def test_a_folder_is_read(tmp_path, at):
    write_folder(tmp_path, at=at)
    task = read_retrieval_task(tmp_path)
    assert task.corpus == {"d1": "A dog", "d2": "a sky"}
    assert task.queries == {"q1": "a dog"}
    assert task.relevance == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qrels": "q9\td1\t1\n"}, r"qrels.tsv, line 2: .* no query 'q9'"),
        ({"qrels": "q1\td1\thigh\n"}, r"qrels.tsv, line 2: .* a whole number"),
        ({"qrels": f"q1\td1\t{'9' * 400}\n"}, r"qrels.tsv, line 2: .* at most 1073741824"),
        ({"qrels": f"q1\td1\t{'9' * 5000}\n"}, r"qrels.tsv, line 2: .* at most 1073741824"),
        ({"qrels": "q1\td1\n"}, r"qrels.tsv, line 2"),
        ({"header": ""}, r"qrels.tsv: column 'query-id' is missing"),
        ({"corpus": [{"_id": "d1", "text": "x"}] * 2}, r"corpus.jsonl, line 2: the id 'd1'"),
        ({"corpus": [{"_id": 1, "text": "x"}]}, r"corpus.jsonl, line 1: wanted strings"),
        ({"queries": [["q1", "x"]]}, r"queries.jsonl, line 1: wanted a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    write_folder(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        read_retrieval_task(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_retrieval_task(tmp_path / "none")
    write_folder(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither qrels.tsv nor qrels/test.tsv"):
        read_retrieval_task(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"corpus.jsonl"):
        read_retrieval_task(tmp_path)


def test_nothing_relevant(tmp_path):
    write_folder(tmp_path, qrels="q1\td1\t0\n")
    with pytest.raises(ValueError, match="2 documents and 0 queries"):
        evaluate_retrieval(Vectors({}, {}), read_retrieval_task(tmp_path))


@pytest.mark.slow
def test_cranfield(minilm, data):
    task = read_retrieval_task(data / "retrieval" / "cranfield")
    scores = evaluate_retrieval(minilm, task)
    assert scores.ndcg_at_10 == pytest.approx(0.3953, abs=1e-4)
    assert (scores.num_queries, scores.num_documents) == (225, 1400)
