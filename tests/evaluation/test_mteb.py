"""MtebEncoder: a local task of mteb gives the figures that it gives for sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from minifuse.bench.sample_text import SENTENCES
from minifuse.evaluation.mteb import MtebEncoder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb", reason="the benchmark itself, an optional extra")


@pytest.fixture
def task(mteb, rng):
    from datasets import Dataset, DatasetDict

    half = len(SENTENCES) // 2
    first, second = SENTENCES[:half], SENTENCES[half : 2 * half]

    class LocalPairs(mteb.mocks.mock_tasks.MockSTSTask):
        def load_data(self, num_proc=None, **kwargs):
            columns = {"sentence1": first, "sentence2": second, "score": rng.random(half) * 5}
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

    task = LocalPairs()
    task.load_data()
    return task


def scores_of(mteb, model, task):
    result = mteb.evaluate(model, task, cache=None, overwrite_strategy="always")
    return result.task_results[0].scores["test"][0]


def test_a_local_task(mteb, task, minilm, minilm_folder):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the referee")
    ours = scores_of(mteb, MtebEncoder(minilm), task)
    theirs = scores_of(
        mteb, sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu"), task
    )
    assert ours["cosine_spearman"] == pytest.approx(theirs["cosine_spearman"], abs=1e-4)
    assert ours["cosine_pearson"] == pytest.approx(theirs["cosine_pearson"], abs=1e-4)
    rows = task.dataset["test"]
    first, second = (minilm.encode(list(rows[name])) for name in ("sentence1", "sentence2"))
    cosines = np.sum(first * second, axis=1)  # this model's vectors have length 1
    assert ours["cosine_spearman"] == pytest.approx(
        spearmanr(cosines, rows["score"]).statistic, abs=1e-4
    )
