"""minifuse.integrations against the libraries themselves.

`make test-clients` installs the libraries into an environment of their own; elsewhere a test of a
library that is not there is skipped.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from client_texts import TEXTS

import minifuse
from minifuse import CrossEncoder, SentenceTransformer
from minifuse.integrations import best_first, cross_encoder_of, sentence_transformer_of
from tiny_cross_encoder import write_cross_encoder

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own are not ours to mend


@pytest.fixture(scope="module")
def model(tiny_folder):
    return SentenceTransformer(tiny_folder)


@pytest.fixture(scope="module")
def prompted(tiny_folder):
    """A model that puts other words before queries than before documents."""
    prompts = {"query": "people: ", "document": "the "}
    return SentenceTransformer(tiny_folder, prompts=prompts)


@pytest.fixture(scope="module")
def vectors(model):
    return model.encode(TEXTS)


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp("models") / "reranker", "bert")


@pytest.fixture(scope="module")
def best(reranker_folder):
    """Positions of the texts by their score with the query "dogs", and the scores."""
    scores = CrossEncoder(reranker_folder).predict([("dogs", text) for text in TEXTS])
    return np.argsort(-scores, kind="stable").tolist(), scores


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; make test-clients has it")


def count_loads(monkeypatch):
    """A list that grows with every model that is loaded from now on."""
    loads = []
    read = SentenceTransformer._read_folder
    monkeypatch.setattr(
        SentenceTransformer,
        "_read_folder",
        staticmethod(lambda folder: loads.append(folder) or read(folder)),
    )
    return loads


def nearest(vectors, query):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return int(np.argmax(unit @ query))


def test_models_are_loaded_or_refused(tiny_folder, reranker_folder, model):
    assert sentence_transformer_of(model) is model
    assert sentence_transformer_of(str(tiny_folder), dtype="int8").dtype == "int8"
    assert cross_encoder_of(reranker_folder).num_labels == 1
    with pytest.raises(
        TypeError, match=r"wanted a minifuse\.CrossEncoder, a folder or a model name"
    ):
        cross_encoder_of(model)
    with pytest.raises(TypeError, match="dtype: the model is loaded already"):
        sentence_transformer_of(model, dtype="int8")


def test_best_first():
    assert best_first(np.array([0.5, 2.0, 0.5, 3.0])) == [3, 1, 0, 2]
    assert best_first([1.0, 2.0], 1) == [1]
    assert best_first([1.0, 2.0], 0) == []
    with pytest.raises(ValueError, match=r"shape \(2, 3\), wanted one for each document"):
        best_first(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="-1, wanted >= 0"):
        best_first([1.0], -1)


def test_nothing_is_imported_until_it_is_asked_for():
    script = (
        "import sys, minifuse.integrations as i\n"
        "names = 'chromadb langchain_core llama_index haystack sklearn txtai bertopic keybert "
        "duckdb polars lancedb qdrant_client sentence_transformers torch'.split()\n"
        "print([n for n in names if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---- vector stores ------------------------------------------------------------------------------


def test_chroma(tiny_folder, vectors, tmp_path, monkeypatch):
    chromadb = library("chromadb")
    from minifuse.integrations.chroma import MinifuseEmbeddingFunction

    function = MinifuseEmbeddingFunction(str(tiny_folder))
    np.testing.assert_array_equal(np.stack(function(TEXTS)), vectors)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    collection = client.create_collection("texts", embedding_function=function)
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    # Chroma builds the function again from what it has stored.
    loads = count_loads(monkeypatch)
    again = client.get_collection("texts")
    found = again.query(query_texts=[TEXTS[4]], n_results=2)
    assert found["ids"][0][0] == "4"
    assert found["distances"][0][0] == pytest.approx(0, abs=1e-5)
    assert again.configuration["hnsw"]["space"] == "cosine"
    assert loads == []  # every call builds a function, and none loads a model


def test_chroma_keeps_what_vectors_depend_on(tiny_folder):
    library("chromadb")
    from minifuse.integrations.chroma import MinifuseEmbeddingFunction

    function = MinifuseEmbeddingFunction(
        str(tiny_folder), dtype="int8", normalize_embeddings=True, truncate_dim=16
    )
    config = function.get_config()
    again = MinifuseEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    np.testing.assert_array_equal(np.stack(again(TEXTS)), np.stack(function(TEXTS)))
    assert np.stack(again(TEXTS)).shape == (len(TEXTS), 16)
    function.validate_config(config)
    with pytest.raises(ValueError, match=r"unknown settings \['x'\]"):
        function.validate_config({"x": 1})
    function.validate_config_update(config, {"dtype": "float32"})
    with pytest.raises(ValueError, match=r"truncate_dim is 16 .* cannot become 8: make a new"):
        function.validate_config_update(config, {"truncate_dim": 8})


def test_lancedb(tiny_folder, vectors, tmp_path, monkeypatch):
    lancedb = library("lancedb")
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    from minifuse.integrations import lancedb as ours

    assert get_registry().get("minifuse") is ours.MinifuseEmbeddings
    function = get_registry().get("minifuse").create(name=str(tiny_folder))

    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    table = lancedb.connect(tmp_path / "lance").create_table("notes", schema=Note)
    loads = count_loads(monkeypatch)
    table.add([{"text": text} for text in TEXTS])
    assert loads == []
    stored = table.to_arrow().column("vector").to_pylist()
    np.testing.assert_array_equal(np.array(stored, np.float32), vectors)
    again = lancedb.connect(tmp_path / "lance").open_table("notes")
    assert again.search(TEXTS[2]).limit(1).to_list()[0]["text"] == TEXTS[2]
    found = function.compute_source_embeddings([TEXTS[0], None])
    np.testing.assert_array_equal(found[0], vectors[0])
    assert found[1] is None
    with pytest.raises(ValueError, match="truncate_dim"):
        get_registry().get("minifuse").create(truncate_dim=8)


def test_qdrant(model, prompted, vectors):
    library("qdrant_client")
    from qdrant_client import QdrantClient, models

    from minifuse.integrations import qdrant

    client = QdrantClient(":memory:")
    qdrant.create_collection(client, "notes", model)
    assert client.get_collection("notes").config.params.vectors.distance == models.Distance.COSINE
    payloads = [{"n": i} for i in range(len(TEXTS))]
    ids = range(len(TEXTS))
    assert qdrant.add(client, "notes", TEXTS, model, ids=ids, payloads=payloads) == len(TEXTS)
    found = qdrant.search(client, "notes", TEXTS[3], model, limit=2)
    assert [found[0].id, found[0].payload] == [3, {"n": 3, "text": TEXTS[3]}]
    only = models.Filter(must=[models.FieldCondition(key="n", match=models.MatchValue(value=5))])
    assert [p.id for p in qdrant.search(client, "notes", "dogs", model, query_filter=only)] == [5]
    expected = nearest(vectors, prompted.encode_query("dogs"))
    assert qdrant.search(client, "notes", "dogs", prompted, limit=1)[0].id == expected
    with pytest.raises(ValueError, match="6 texts and 1 ids: wanted as many"):
        qdrant.add(client, "notes", TEXTS, model, ids=[1])
    with pytest.raises(TypeError, match="texts is one string"):
        qdrant.add(client, "notes", TEXTS[0], model)
    qdrant.create_collection(client, "again", model)
    for _ in range(2):
        qdrant.add(client, "again", TEXTS[:4], model)
    assert client.count("again").count == 4


# ---- frameworks ---------------------------------------------------------------------------------


def test_langchain(model, prompted, vectors, reranker_folder, best):
    library("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    from minifuse.integrations.langchain import MinifuseEmbeddings, MinifuseReranker

    embeddings = MinifuseEmbeddings(model)
    np.testing.assert_array_equal(np.array(embeddings.embed_documents(TEXTS), "f4"), vectors)
    np.testing.assert_array_equal(np.array(embeddings.embed_query(TEXTS[0]), "f4"), vectors[0])
    query = np.array(MinifuseEmbeddings(prompted).embed_query("dogs"), "f4")
    np.testing.assert_array_equal(query, prompted.encode("people: dogs"))
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]

    documents = [Document(page_content=text, metadata={"n": i}) for i, text in enumerate(TEXTS)]
    order, scores = best
    kept = MinifuseReranker(model=str(reranker_folder), top_n=2).compress_documents(
        documents, "dogs"
    )
    assert [one.metadata["n"] for one in kept] == order[:2]
    assert kept[0].metadata["relevance_score"] == float(scores[order[0]])
    assert documents[order[0]].metadata == {"n": order[0]}  # a copy took the score
    every = MinifuseReranker(model=CrossEncoder(reranker_folder), top_n=None, score_key=None)
    assert [one.metadata for one in every.compress_documents(documents, "dogs")] == [
        {"n": i} for i in order
    ]
    assert every.compress_documents([], "dogs") == []


def test_llama_index(model, prompted, vectors, reranker_folder, best):
    library("llama_index.core")
    import asyncio

    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import NodeWithScore, TextNode

    from minifuse.integrations.llama_index import MinifuseEmbedding, MinifuseRerank

    embedding = MinifuseEmbedding(model)
    found = np.array(embedding.get_text_embedding_batch(TEXTS), np.float32)
    np.testing.assert_array_equal(found, vectors)
    found = np.array(asyncio.run(embedding.aget_query_embedding(TEXTS[1])), np.float32)
    np.testing.assert_array_equal(found, vectors[1])
    query = np.array(MinifuseEmbedding(prompted).get_query_embedding("dogs"), "f4")
    np.testing.assert_array_equal(query, prompted.encode("people: dogs"))
    small = MinifuseEmbedding(str(model.name), dtype="int8")
    for again in (pickle.loads(pickle.dumps(small)), MinifuseEmbedding.from_dict(small.to_dict())):
        assert (again.model_name, again.dtype) == (str(model.name), "int8")
        assert again.get_query_embedding("dogs") == small.get_query_embedding("dogs")
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(TEXTS)]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    retrieved = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[5])
    assert retrieved[0].node.node_id == "5"

    order, scores = best
    rerank = MinifuseRerank(str(reranker_folder), top_n=3, keep_retrieval_score=True)
    given = [NodeWithScore(node=node, score=0.25) for node in nodes]
    kept = rerank.postprocess_nodes(given, query_str="dogs")
    assert [int(one.node.node_id) for one in kept] == order[:3]
    assert kept[0].score == float(scores[order[0]])
    assert kept[0].node.metadata["retrieval_score"] == 0.25
    for again in (pickle.loads(pickle.dumps(rerank)), MinifuseRerank.from_dict(rerank.to_dict())):
        assert again.model == str(reranker_folder)
        copies = [NodeWithScore(node=node, score=0.25) for node in nodes]
        assert again.postprocess_nodes(copies, query_str="dogs")[0].score == kept[0].score
    with pytest.raises(ValueError, match="a reranker needs the query"):
        rerank.postprocess_nodes(given)


def test_haystack(tiny_folder, vectors, reranker_folder, best):
    library("haystack")
    from haystack import Document, Pipeline

    from minifuse.integrations.haystack import (
        MinifuseDocumentEmbedder,
        MinifuseRanker,
        MinifuseTextEmbedder,
    )

    documents = [Document(content=text, meta={"n": i}) for i, text in enumerate(TEXTS)]
    embedder = MinifuseDocumentEmbedder(str(tiny_folder))
    found = embedder.run(documents=documents)["documents"]
    np.testing.assert_array_equal(np.array([one.embedding for one in found], "f4"), vectors)
    assert documents[0].embedding is None
    titled = MinifuseDocumentEmbedder(str(tiny_folder), meta_fields_to_embed=["n"])
    vector = titled.run(documents=documents[:1])["documents"][0].embedding
    expected = SentenceTransformer(tiny_folder).encode(f"0\n{TEXTS[0]}")
    np.testing.assert_array_equal(np.array(vector, "f4"), expected)

    pipeline = Pipeline()
    pipeline.add_component("query", MinifuseTextEmbedder(str(tiny_folder)))
    pipeline.add_component("ranker", MinifuseRanker(str(reranker_folder), top_k=2))
    again = Pipeline.loads(
        pipeline.dumps(), allowed_modules=["minifuse.integrations.haystack"]
    )  # Haystack builds no class of a file that nobody has named
    done = again.run(
        {"query": {"text": TEXTS[0]}, "ranker": {"query": "dogs", "documents": documents}}
    )
    np.testing.assert_array_equal(np.array(done["query"]["embedding"], "f4"), vectors[0])
    order, scores = best
    assert [one.meta["n"] for one in done["ranker"]["documents"]] == order[:2]
    assert done["ranker"]["documents"][0].score == float(scores[order[0]])
    strict = MinifuseRanker(str(reranker_folder), score_threshold=float(scores[order[1]]))
    kept = strict.run(query="dogs", documents=documents)["documents"]
    assert [one.meta["n"] for one in kept] == order[:2]
    twice = MinifuseRanker(str(reranker_folder)).run(query="dogs", documents=documents * 2)
    assert len(twice["documents"]) == len(documents)
    with pytest.raises(TypeError, match="documents go to MinifuseDocumentEmbedder"):
        MinifuseTextEmbedder(str(tiny_folder)).run(text=documents)


def test_txtai(tiny_folder, vectors, tmp_path):
    library("txtai")
    from txtai import Embeddings

    from minifuse.integrations.txtai import METHOD

    embeddings = Embeddings(path=str(tiny_folder), method=METHOD, vectors={"num_threads": 1})
    embeddings.index(enumerate(TEXTS))
    embeddings.save(str(tmp_path / "index"))
    again = Embeddings()
    again.load(str(tmp_path / "index"))
    number, score = again.search(TEXTS[3], 1)[0]
    assert number == 3
    assert score == pytest.approx(1, abs=1e-5)
    unit = vectors[2] / np.linalg.norm(vectors[2])
    np.testing.assert_allclose(again.transform(TEXTS[2]), unit, atol=1e-6)

    options = {"method": METHOD, "instructions": {"query": "a "}, "encodeargs": {"truncate_dim": 8}}
    asked = Embeddings(path=str(tiny_folder), **options)
    expected = SentenceTransformer(tiny_folder).encode(f"a {TEXTS[2]}", truncate_dim=8)
    np.testing.assert_allclose(
        asked.transform(TEXTS[2]), expected / np.linalg.norm(expected), atol=1e-6
    )


# ---- analysis -----------------------------------------------------------------------------------


def test_scikit_learn(tiny_folder, vectors):
    library("sklearn")
    from sklearn import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    from minifuse.integrations.scikit_learn import SentenceEncoder

    labels = [0, 1, 0, 1, 1, 0]
    encoder = SentenceEncoder(str(tiny_folder), num_threads=1)
    np.testing.assert_array_equal(encoder.fit_transform(TEXTS), vectors)
    assert len(pickle.dumps(encoder)) < 1000
    for copy in (clone(encoder), pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_array_equal(copy.transform(TEXTS), vectors)
    assert encoder.set_params(truncate_dim=8).transform(TEXTS).shape == (6, 8)
    assert encoder.get_feature_names_out().tolist() == [f"embedding{i}" for i in range(8)]
    assert encoder.set_params(dtype="int8")._load().dtype == "int8"
    narrow = SentenceTransformer(tiny_folder, truncate_dim=8)
    wider = SentenceEncoder(narrow, truncate_dim=16)
    assert wider.transform(TEXTS).shape[1] == len(wider.get_feature_names_out()) == 16
    for wrong, told in (("a text", "X is one string"), ([["a", "b"]], r"X\[0\] is a list")):
        with pytest.raises(TypeError, match=told):
            SentenceEncoder(str(tiny_folder)).transform(wrong)

    grid = GridSearchCV(
        make_pipeline(SentenceEncoder(str(tiny_folder)), LogisticRegression()),
        {"sentenceencoder__normalize_embeddings": [False, True]},
        cv=2,
    ).fit(TEXTS, labels)
    assert set(grid.predict(TEXTS)) <= {0, 1}

    pandas = library("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "n": range(6)})
    columns = ColumnTransformer([("text", SentenceEncoder(str(tiny_folder)), ["text"])])
    np.testing.assert_array_equal(columns.fit_transform(frame), vectors)
    with pytest.raises(ValueError, match=r"shape \(6, 2\), wanted texts"):
        SentenceEncoder(str(tiny_folder)).transform(frame)


def test_duckdb(model, vectors):
    duckdb = library("duckdb")
    from minifuse.integrations.duckdb import register

    connection = duckdb.connect()
    register(connection, model)
    register(connection, model, "embed8", truncate_dim=8, normalize_embeddings=True)
    connection.execute("CREATE TABLE notes (id INTEGER, body VARCHAR)")
    rows = [*enumerate(TEXTS), (6, None)]
    connection.executemany("INSERT INTO notes VALUES (?, ?)", rows)
    found = connection.execute("SELECT embed(body), embed8(body) FROM notes ORDER BY id").fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in found[:6]], "f4"), vectors)
    expected = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_array_equal(np.array([row[1] for row in found[:6]], "f4"), expected)
    assert found[6] == (None, None)
    query = "SELECT id FROM notes WHERE body IS NOT NULL ORDER BY array_cosine_distance(embed(body), embed(?))"
    assert connection.execute(query, [TEXTS[4]]).fetchall()[0] == (4,)
    assert connection.execute("SELECT embed(NULL)").fetchall() == [(None,)]
    register(connection, SentenceTransformer(model.name, truncate_dim=8), "wider", truncate_dim=16)
    assert len(connection.execute("SELECT wider('a dog')").fetchall()[0][0]) == 16
    many = connection.execute("SELECT embed('a dog ' || (i % 7)) FROM range(5000) t(i)").fetchall()
    assert len(many) == 5000


def test_polars(model, vectors):
    pl = library("polars")
    from minifuse.integrations.polars import embed

    frame = pl.DataFrame({"n": range(7), "body": [*TEXTS[:3], None, *TEXTS[3:]]})
    found = frame.with_columns(embed("body", model).alias("vector"))
    assert found.schema["vector"] == pl.Array(pl.Float32, vectors.shape[1])
    assert found["vector"][3] is None
    rows = found["vector"].drop_nulls().to_numpy()
    np.testing.assert_array_equal(rows, vectors)
    lazy = frame.lazy().select(embed(pl.col("body").str.to_lowercase(), model, truncate_dim=4))
    lowered = [text.lower() for text in TEXTS]
    np.testing.assert_array_equal(
        lazy.collect(engine="streaming").to_series().drop_nulls().to_numpy(),
        model.encode(lowered, truncate_dim=4),
    )
    empty = frame.head(0).select(embed("body", model))
    assert empty.shape == (0, 1)
    with pytest.raises(TypeError, match="'n' is Int64, wanted String"):
        frame.select(embed("n", model))


def test_bertopic(model):
    bertopic = library("bertopic")
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    from minifuse.integrations.bertopic import MinifuseBackend

    topics = bertopic.BERTopic(
        embedding_model=MinifuseBackend(model),
        umap_model=PCA(n_components=2, random_state=0),
        hdbscan_model=KMeans(n_clusters=2, random_state=0, n_init=1),
        min_topic_size=2,
    )
    found, _ = topics.fit_transform(TEXTS)
    assert len(found) == len(TEXTS)
    assert topics.embedding_model.embedding_model is model
    shown = MinifuseBackend(model, show_progress_bar=False).embed(TEXTS, verbose=True)
    np.testing.assert_array_equal(shown, model.encode(TEXTS))


def test_keybert(model):
    keybert = library("keybert")
    from minifuse.integrations.keybert import MinifuseBackend

    words = keybert.KeyBERT(model=MinifuseBackend(model)).extract_keywords(TEXTS[1], top_n=2)
    for word, score in words:
        cosine = minifuse.util.cos_sim(model.encode(TEXTS[1]), model.encode(word))[0, 0]
        assert score == pytest.approx(cosine, abs=1e-3)


# ---- sentence-transformers' own class -----------------------------------------------------------


def test_a_model_stands_in_for_sentence_transformers_class(model, vectors, tmp_path):
    sentence_transformers = library("sentence_transformers")
    import torch

    from minifuse.integrations.sentence_transformers import as_sentence_transformer

    one = as_sentence_transformer(model)
    assert isinstance(one, sentence_transformers.SentenceTransformer)
    assert isinstance(one, torch.nn.Module)
    assert "sentence_transformers" in str(type(one))
    np.testing.assert_array_equal(one.encode(TEXTS), vectors)
    assert one.to("cpu") is one.eval() is one
    assert one.train(False) is one.float() is one
    assert one._first_module().max_seq_length == model.max_seq_length
    assert (len(one), one.max_seq_length) == (len(model), model.max_seq_length)
    assert list(one.parameters()) == []
    one.max_seq_length = 5
    assert model.max_seq_length == 5
    one.max_seq_length = None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).encode(TEXTS), vectors)
    one.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(SentenceTransformer(tmp_path / "saved").encode(TEXTS), vectors)
    with pytest.raises(TypeError, match=r"model is a str, wanted a minifuse\.SentenceTransformer"):
        as_sentence_transformer("all-MiniLM-L6-v2")


def test_bertopic_takes_the_stand_in_as_its_own(model):
    library("bertopic")
    from bertopic.backend._utils import select_backend

    from minifuse.integrations.sentence_transformers import as_sentence_transformer

    backend = select_backend(as_sentence_transformer(model))
    np.testing.assert_array_equal(backend.embed(TEXTS), model.encode(TEXTS))


def test_every_integration_is_on_its_page():
    folder = Path(minifuse.__file__).parent / "integrations"
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text("utf-8")
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert names
    assert [name for name in names if f"minifuse.integrations.{name}" not in page] == []
