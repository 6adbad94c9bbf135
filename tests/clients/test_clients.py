"""Libraries that were written for sentence-transformers, with minifuse's classes in their hands.

`make test-clients` installs the libraries into an environment of their own; elsewhere a test of a
library that is not there is skipped.
"""

import json

import numpy as np
import pytest
import sentence_transformers
from client_texts import TEXTS

import minifuse
from minifuse import CrossEncoder, SentenceTransformer
from tiny_cross_encoder import write_cross_encoder

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own are not ours to mend


@pytest.fixture
def model(tiny_folder):
    return SentenceTransformer(tiny_folder)


@pytest.fixture(scope="module")
def vectors(tiny_folder):
    return SentenceTransformer(tiny_folder).encode(TEXTS)


def test_chroma(tiny_folder, vectors, monkeypatch):
    chromadb = pytest.importorskip(
        "chromadb", reason="Chroma is not installed; make test-clients has it"
    )
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", SentenceTransformer)
    function = SentenceTransformerEmbeddingFunction(str(tiny_folder))
    np.testing.assert_array_equal(np.stack(function(TEXTS)), vectors)
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    found = collection.query(query_texts=[TEXTS[4]], n_results=2)
    assert found["ids"][0][0] == "4"


@pytest.mark.parametrize("multi_process", [False, True])
def test_langchain(tiny_folder, vectors, monkeypatch, multi_process):
    langchain = pytest.importorskip(
        "langchain_huggingface", reason="LangChain is not installed; make test-clients has it"
    )
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", SentenceTransformer)
    embeddings = langchain.HuggingFaceEmbeddings(
        model_name=str(tiny_folder), multi_process=multi_process
    )
    found = np.array(embeddings.embed_documents(TEXTS), np.float32)
    np.testing.assert_array_equal(found, vectors)
    query = np.array(embeddings.embed_query(TEXTS[0]), np.float32)
    np.testing.assert_array_equal(query, vectors[0])


def test_llama_index(tiny_folder, vectors, monkeypatch):
    base = pytest.importorskip(
        "llama_index.embeddings.huggingface.base",
        reason="LlamaIndex is not installed; make test-clients has it",
    )
    monkeypatch.setattr(base, "SentenceTransformer", SentenceTransformer)
    embedding = base.HuggingFaceEmbedding(model_name=str(tiny_folder), normalize=False)
    found = np.array(embedding.get_text_embedding_batch(TEXTS), np.float32)
    np.testing.assert_array_equal(found, vectors)
    query = np.array(embedding.get_query_embedding(TEXTS[1]), np.float32)
    np.testing.assert_array_equal(query, vectors[1])


def test_txtai(tiny_folder, vectors, monkeypatch):
    pytest.importorskip("txtai", reason="txtai is not installed; make test-clients has it")
    from txtai import Embeddings
    from txtai.vectors.dense import sbert

    monkeypatch.setattr(sbert, "SentenceTransformer", SentenceTransformer)
    embeddings = Embeddings(path=str(tiny_folder), method="sentence-transformers", content=False)
    embeddings.index(enumerate(TEXTS))
    number, score = embeddings.search(TEXTS[3], 1)[0]
    assert number == 3
    assert score == pytest.approx(1, abs=1e-5)
    unit = vectors[2] / np.linalg.norm(vectors[2])
    np.testing.assert_allclose(embeddings.transform(TEXTS[2]), unit, atol=1e-6)


def test_setfit(model, vectors, tmp_path):
    """The head is fitted to our vectors; a saved model comes back with sentence-transformers' body."""
    setfit = pytest.importorskip(
        "setfit", reason="setfit is not installed; make test-clients has it"
    )
    from sklearn.linear_model import LogisticRegression

    labels = [0, 1, 0, 1, 1, 0]
    head = LogisticRegression().fit(vectors, labels)
    fitted = setfit.SetFitModel(model_body=model, model_head=head, labels=["sky", "dog"])
    expected = head.predict_proba(vectors)
    np.testing.assert_allclose(fitted.predict_proba(TEXTS, as_numpy=True), expected, atol=1e-6)
    assert list(fitted.predict(TEXTS)) == [["sky", "dog"][i] for i in head.predict(vectors)]
    fitted.save_pretrained(tmp_path / "saved")
    again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(again.model_body, sentence_transformers.SentenceTransformer)
    np.testing.assert_allclose(again.predict_proba(TEXTS, as_numpy=True), expected, atol=1e-5)


def test_haystack(tiny_folder, vectors, tmp_path, monkeypatch):
    name = "haystack_integrations.components.embedders.sentence_transformers"
    embedding = pytest.importorskip(
        name, reason="Haystack's integration is not installed; make test-clients has it"
    )
    from haystack import Document
    from haystack_integrations.components.embedders.sentence_transformers.embedding_backend import (
        backend,
    )
    from haystack_integrations.components.rankers import sentence_transformers as rankers
    from haystack_integrations.components.rankers.sentence_transformers import (
        sentence_transformers_similarity as similarity,
    )

    monkeypatch.setattr(backend, "SentenceTransformer", SentenceTransformer)
    monkeypatch.setattr(backend, "quantize_embeddings", minifuse.quantize_embeddings)
    documents = [Document(content=text) for text in TEXTS]
    embedder = embedding.SentenceTransformersDocumentEmbedder(model=str(tiny_folder))
    embedder.warm_up()
    found = [one.embedding for one in embedder.run(documents=documents)["documents"]]
    np.testing.assert_array_equal(np.array(found, np.float32), vectors)
    of_text = embedding.SentenceTransformersTextEmbedder(
        model=str(tiny_folder),
        precision="int8",
        quantization_ranges=np.stack([vectors.min(axis=0), vectors.max(axis=0)]).tolist(),
    )
    of_text.warm_up()
    assert len(of_text.run(text=TEXTS[0])["embedding"]) == vectors.shape[1]

    folder = write_cross_encoder(tmp_path / "reranker", "bert")
    monkeypatch.setattr(similarity, "CrossEncoder", CrossEncoder)
    ranker = rankers.SentenceTransformersSimilarityRanker(model=str(folder))
    ranker.warm_up()
    ranked = ranker.run(query="dogs", documents=documents)["documents"]
    scores = CrossEncoder(folder).predict([("dogs", text) for text in TEXTS])
    assert [one.content for one in ranked] == [TEXTS[i] for i in np.argsort(-scores)]


def test_mining_of_sentence_transformers(model):
    datasets = pytest.importorskip(
        "datasets", reason="datasets is not installed; make test-clients has it"
    )
    from sentence_transformers.util import mine_hard_negatives

    pairs = datasets.Dataset.from_dict({"query": TEXTS, "answer": [f"{t} Yes." for t in TEXTS]})
    mined = mine_hard_negatives(pairs, model, num_negatives=1, verbose=False)
    assert mined.column_names == ["query", "answer", "negative"]
    assert len(mined) == len(TEXTS)


def test_scikit_learn_and_pandas(model, vectors):
    pandas = pytest.importorskip(
        "pandas", reason="pandas is not installed; make test-clients has it"
    )
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    frame = pandas.DataFrame({"text": TEXTS, "label": [0, 1, 0, 1, 1, 0]})
    np.testing.assert_array_equal(model.encode(frame["text"]), vectors)
    pipeline = make_pipeline(FunctionTransformer(model.encode), LogisticRegression())
    scores = cross_val_score(pipeline, TEXTS, frame["label"], cv=2, n_jobs=2)
    assert len(scores) == 2


def test_a_saved_folder_says_what_clients_read(model, tmp_path):
    """txtai and text-embeddings-inference read these files, not a class."""
    model.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text())
    assert settings["model_type"] == "SentenceTransformer"
    assert (tmp_path / "saved" / "sentence_bert_config.json").is_file()
