"""Models that embed queries by other modules than documents, against sentence-transformers."""

import copy
import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer

from family import BERT_SIZES, PADDED, TEXTS, byte_tokenizer, write_folder
from minifuse import SentenceTransformer
from minifuse.models.quantization import quantize

WIDTH = BERT_SIZES["hidden_size"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A transformers folder."""
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    config = transformers.BertConfig(**BERT_SIZES, vocab_size=tokenizer.get_vocab_size())
    folder = tmp_path_factory.mktemp("router") / "encoder"
    return write_folder(
        folder, transformers.BertModel(config), tokenizer, model_max_length=60, **PADDED
    )


def dense(seed):
    torch.manual_seed(seed)
    return Dense(WIDTH, WIDTH, activation_function=torch.nn.Identity())


def of_tables(encoder):
    """Queries go to a table, documents through an encoder, both to unit length."""
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    torch.manual_seed(1)
    table = torch.randn(tokenizer.get_vocab_size(), WIDTH).numpy()
    router = Router.for_query_document(
        query_modules=[StaticEmbedding(tokenizer, embedding_weights=table)],
        document_modules=[Transformer(str(encoder)), Pooling(WIDTH, "mean")],
        default_route="document",
    )
    return [router, Normalize()]


def of_layers(encoder):
    """One encoder, and another layer for queries than for documents."""
    router = Router.for_query_document(
        query_modules=[dense(2)], document_modules=[dense(3)], default_route="query"
    )
    return [Transformer(str(encoder)), Pooling(WIDTH, "cls"), router]


@pytest.mark.parametrize("modules", [of_tables, of_layers])
def test_routes(encoder, tmp_path, modules):
    theirs = sentence_transformers.SentenceTransformer(modules=modules(encoder), device="cpu")
    theirs.save(str(tmp_path / "model"))
    model = SentenceTransformer(tmp_path / "model")
    for name in ("encode", "encode_query", "encode_document"):
        vectors = getattr(model, name)(TEXTS)
        np.testing.assert_allclose(vectors, getattr(theirs, name)(TEXTS), atol=5e-6)
        alone = [getattr(model, name)(text) for text in TEXTS]
        np.testing.assert_array_equal(np.stack(alone), vectors)
    assert np.abs(model.encode_query(TEXTS) - model.encode_document(TEXTS)).max() > 1e-2

    model.save_pretrained(tmp_path / "again")
    for again in (SentenceTransformer(tmp_path / "again"), copy.deepcopy(model)):
        for name in ("encode_query", "encode_document"):
            np.testing.assert_array_equal(getattr(again, name)(TEXTS), getattr(model, name)(TEXTS))
    saved = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(saved.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-6)
    with pytest.raises(ValueError, match="a model with a Router cannot be quantised"):
        quantize(tmp_path / "model", tmp_path / "int8")
    model.max_seq_length = 9
    for module in theirs.modules():
        if isinstance(module, Transformer):  # a table's cannot be set
            module.max_seq_length = 9
    np.testing.assert_allclose(
        model.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=5e-6
    )


def test_one_encoder_is_loaded_once(encoder, tmp_path):
    theirs = sentence_transformers.SentenceTransformer(modules=of_layers(encoder), device="cpu")
    theirs.save(str(tmp_path / "model"))
    routes = SentenceTransformer(tmp_path / "model").pipeline.routes
    assert routes["query"].encoder is routes["document"].encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": {"query": []}}, "wanted types, and a structure of query and document"),
        ({"parameters": {"default_route": "image"}}, "default_route is 'image'"),
        ({"parameters": {"allow_empty_key": False}}, "allow_empty_key is False"),
        ({"parameters": {"route_mappings": {"a": "query"}}}, "route_mappings is given"),
    ],
)
def test_what_is_not_computed_is_refused(encoder, tmp_path, change, message):
    theirs = sentence_transformers.SentenceTransformer(modules=of_tables(encoder), device="cpu")
    theirs.save(str(tmp_path / "model"))
    path = tmp_path / "model" / "router_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(tmp_path / "model")


def test_routes_of_two_widths_are_refused(encoder, tmp_path):
    narrow = Dense(WIDTH, WIDTH - 8, activation_function=torch.nn.Identity())
    router = Router.for_query_document(query_modules=[narrow], document_modules=[dense(3)])
    theirs = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(encoder)), Pooling(WIDTH, "mean"), router], device="cpu"
    )
    theirs.save(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="wanted the same number"):
        SentenceTransformer(tmp_path / "model")
