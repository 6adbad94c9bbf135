"""A cross-encoder's folder as data, in each of the forms that its head has.

The head is a family's own for classification, sentence-transformers' modules behind a pooling, or
two rows of a language model's last matrix (LogitScore). Each becomes modules behind a pooling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minifuse.models.architectures import Head
from minifuse.models.description import Config, read_object
from minifuse.models.folder.behind_encoder import read_modules, read_pooling
from minifuse.models.folder.common import ModelFolder, listed_modules, read_transformer
from minifuse.models.modules import read_head, read_logit_score

__all__ = ["is_cross_encoder", "read_cross_encoder_folder"]

# The answers whose tokens sentence-transformers compares where a folder names none.
_ANSWERS = ("yes", "no")


def is_cross_encoder(folder: Path) -> bool:
    """Return whether a folder holds a model that scores pairs of texts.

    Raises:
        ValueError: its modules.json, config.json or settings are damaged.
    """
    settings = folder / "config_sentence_transformers.json"
    if settings.is_file() and read_object(settings).get("model_type") == "CrossEncoder":
        return True
    is_alone = len(listed_modules(folder)) <= 1
    return is_alone and _ends_with(folder, "ForSequenceClassification")


def _ends_with(folder: Path, ending: str) -> bool:
    """Return whether config.json names a class of models that ends like this."""
    path = folder / "config.json"
    names = read_object(path).get("architectures") if path.is_file() else None
    return isinstance(names, list) and any(
        isinstance(name, str) and name.endswith(ending) for name in names
    )


def read_cross_encoder_folder(folder: Path) -> ModelFolder:
    """Everything of a cross-encoder but the encoder's weights and the tokenizer.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()
    kinds = listed_modules(folder)
    names = [kind for kind, _ in kinds]
    if names[1:2] == ["Pooling"]:
        return _read_modules(folder, kinds)
    if names not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
        raise ValueError(
            f"{folder}: modules.json lists {', '.join(names)}; minifuse runs cross-encoders of one "
            "Transformer with a head for classification, with LogitScore, or with Pooling and "
            "Dense"
        )
    model = read_transformer(folder, kinds[0][1] if kinds else folder)
    if names[1:]:
        path = kinds[1][1] / "config.json"
        return _with_logit_score(model, Config(path, read_object(path)))
    if not names and _ends_with(folder, "ForCausalLM"):
        return _with_logit_score(model, None)
    head = model.architecture.head
    if head is None:
        raise ValueError(f"{model.path}: minifuse has no cross-encoders of this family")
    model.poolings = [_head_pooling(model, head)]
    model.is_classifier = True
    if model.poolings == ["lasttoken"]:
        padding = read_object(model.transformer_path / "config.json").get("pad_token_id")
        model.passed_over = padding if type(padding) is int else None
    model.head_tensors = head.tensors()
    model.modules = list(read_head(model.weights_path, model.architecture, head, model.description))
    return model


def _head_pooling(model: ModelFolder, head: Head) -> str:
    """Return the pooling before a head, which some families' config.json says."""
    if head.pooling_key is None:
        return head.pooling
    path = model.transformer_path / "config.json"
    pooling = read_object(path).get(head.pooling_key, head.pooling)
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{path}: {head.pooling_key} is {pooling!r:.60}, wanted cls or mean")
    return str(pooling)


def _read_modules(folder: Path, kinds: list[tuple[str, Path]]) -> ModelFolder:
    """A cross-encoder of a Transformer, a Pooling and modules, the last of which gives scores."""
    model = read_transformer(folder, kinds[0][1])
    model.poolings, model.include_prompt = read_pooling(kinds[1][1])
    if [kind for kind, _ in kinds[-1:]] != ["Dense"]:
        raise ValueError(
            f"{folder}: modules.json ends with {kinds[-1][0]}, wanted a Dense that gives scores "
            "(for embeddings use SentenceTransformer)"
        )
    model.modules = read_modules(folder, kinds[2:], gives_scores=True)
    return model


def _with_logit_score(model: ModelFolder, config: Config | None) -> ModelFolder:
    """A language model whose score is how far one word is before another as the next one."""
    if config is None:
        true_id, false_id = (_token_id(model.transformer_path, answer) for answer in _ANSWERS)
    else:
        config.want("module_input_name", "causal_logits")
        true_id = config.integer("true_token_id")
        false_id = None
        if config.values.get("false_token_id") is not None:
            false_id = config.integer("false_token_id")
    matrix = model.architecture.language_matrix
    if matrix is None:
        raise ValueError(f"{model.path}: minifuse has no language models of this family")
    tied = read_object(model.transformer_path / "config.json").get("tie_word_embeddings")
    Config(path := model.transformer_path / "config.json", read_object(path)).want(
        "final_logit_softcapping", None
    )
    model.poolings = ["lasttoken"]
    model.head_tensors = [matrix]
    model.modules = [
        read_logit_score(
            model.weights_path,
            model.architecture,
            model.description,
            true_id,
            false_id,
            tied if isinstance(tied, bool) else None,
        )
    ]
    return model


def _token_id(folder: Path, token: str) -> int:
    """Return the number of a token in tokenizer.json."""
    path = folder / "tokenizer.json"
    model: Any = read_object(path).get("model")
    words: Any = model.get("vocab") if isinstance(model, dict) else None
    number = words.get(token) if isinstance(words, dict) else None
    if type(number) is not int or number < 0:
        raise ValueError(
            f"{path}: has no token {token!r}, so the model needs a LogitScore in modules.json"
        )
    return number
