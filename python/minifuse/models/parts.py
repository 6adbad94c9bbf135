"""The parts of a model as programs made for sentence-transformers see them: model[0], model[1], ...

They show settings and change those of the model that has them; the model alone computes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minifuse.models.description import read_object
from minifuse.models.folder import OLD_POOLING_KEYS

__all__ = ["Pooling", "Transformer"]


class Transformer:
    """The encoder and its tokenizer.

    Args:
        model: that this is a part of.
    """

    __slots__ = ("_model",)  # a setting that the model does not have is refused

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def max_seq_length(self) -> int:
        """The model's; setting it sets that."""
        return int(self._model.max_seq_length)

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._model.max_seq_length = value

    @property
    def tokenizer(self) -> Any:
        """The model's; setting it sets that."""
        return self._model.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self._model.tokenizer = value

    processor = tokenizer

    @property
    def do_lower_case(self) -> bool:
        """True where texts are lowered before the tokenizer sees them."""
        return bool(self._model.pipeline.folder.do_lower_case)

    @property
    def config(self) -> SimpleNamespace:
        """config.json, a key an attribute."""
        folder: Path = self._model.pipeline.folder.transformer_path
        return SimpleNamespace(**read_object(folder / "config.json"))

    @property
    def auto_model(self) -> Any:
        """Raises AttributeError: there is no PyTorch module."""
        raise AttributeError(
            "a minifuse model has no PyTorch module (auto_model): load the folder with "
            "sentence-transformers or transformers for that"
        )

    model = auto_model

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self._model.preprocess(*args, **kwargs)

    tokenize = preprocess

    def get_embedding_dimension(self) -> int:
        """The width of a token's row."""
        return int(self._model.pipeline.folder.description.hidden_size)

    get_word_embedding_dimension = get_embedding_dimension

    def __repr__(self) -> str:
        return f"Transformer(max_seq_length={self.max_seq_length})"


class Pooling:
    """The step that makes a vector of a text's rows.

    Args:
        model: that this is a part of.
    """

    __slots__ = ("_model",)

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def pooling_mode(self) -> str | tuple[str, ...]:
        """ "mean", "cls", "max" and others; several as a tuple."""
        names = self._model.pipeline.folder.poolings
        return str(names[0]) if len(names) == 1 else tuple(names)

    def get_pooling_mode_str(self) -> str:
        """The names, joined by a plus sign."""
        return "+".join(self._model.pipeline.folder.poolings)

    @property
    def include_prompt(self) -> bool:
        """True where the tokens of a prompt take part; setting it sets the model's."""
        return bool(self._model.pipeline.include_prompt)

    @include_prompt.setter
    def include_prompt(self, value: bool) -> None:
        self._model.pipeline.include_prompt = bool(value)

    @property
    def embedding_dimension(self) -> int:
        """The width of a token's row."""
        return int(self._model.pipeline.folder.description.hidden_size)

    word_embedding_dimension = embedding_dimension

    @property
    def pooling_output_dimension(self) -> int:
        """The width of a vector."""
        return self.embedding_dimension * len(self._model.pipeline.folder.poolings)

    def get_embedding_dimension(self) -> int:
        """The width of a vector."""
        return self.pooling_output_dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    def __getattr__(self, name: str) -> bool:
        if name not in OLD_POOLING_KEYS:
            raise AttributeError(f"Pooling has no {name!r}")
        return OLD_POOLING_KEYS[name] in self._model.pipeline.folder.poolings

    def __repr__(self) -> str:
        return f"Pooling({self.get_pooling_mode_str()!r})"
