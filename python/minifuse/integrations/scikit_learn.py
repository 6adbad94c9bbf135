"""scikit-learn: a transformer from texts to vectors, for pipelines and searches of parameters.

classifier = make_pipeline(SentenceEncoder(), LogisticRegression())
classifier.fit(texts, labels)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from minifuse.integrations import DEFAULT_MODEL, sentence_transformer_of, width_of

__all__ = ["SentenceEncoder"]


class SentenceEncoder(TransformerMixin, BaseEstimator):
    """Texts in, vectors out; there is nothing to fit.

    Args:
        model: a folder, a Hugging Face name or a loaded SentenceTransformer. A name is loaded at
            the first use, once, and again in a copy: clones and pickles stay small.
        dtype, num_threads: SentenceTransformer's, for a name.
        batch_size, normalize_embeddings, truncate_dim, prompt_name: encode's.
    """

    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        *,
        dtype: str | None = None,
        num_threads: int | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
    ) -> None:
        # scikit-learn copies an estimator by these names and wants the values as they were given.
        self.model = model
        self.dtype = dtype
        self.num_threads = num_threads
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.prompt_name = prompt_name

    def fit(self, X: Any, y: Any = None) -> SentenceEncoder:
        """Load the model; texts and labels are not looked at."""
        self._load()
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Vectors of texts.

        Args:
            X: a list, array or pandas Series of strings, or one column of them, [n, 1].

        Returns:
            float32 [n, dim].

        Raises:
            TypeError: X is one string, or an input is not a string.
            ValueError: X has several columns.
        """
        vectors: npt.NDArray[np.float32] = self._load().encode(
            _column(X),
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
            prompt_name=self.prompt_name,
        )
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the columns of transform's result: "embedding0" and so on."""
        width = width_of(self._load(), self.truncate_dim)
        return np.array([f"embedding{i}" for i in range(width)], object)

    def _load(self) -> Any:
        """The model of the present parameters, which set_params may change."""
        wanted = (self.model, self.dtype, self.num_threads)
        if getattr(self, "_model_of", None) != wanted:
            self._loaded = sentence_transformer_of(
                self.model, dtype=self.dtype, num_threads=self.num_threads
            )
            self._model_of = wanted
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        for name in ("_loaded", "_model_of"):
            state.pop(name, None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags


def _column(X: Any) -> Any:
    """The texts of X, which a ColumnTransformer may give as a table of one column."""
    if isinstance(X, str):
        raise TypeError("X is one string, wanted a list of strings")
    shape = getattr(X, "shape", None)
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:
            raise ValueError(
                f"X has the shape {tuple(shape)}, wanted texts [n] or one column [n, 1]"
            )
        X = np.asarray(X)[:, 0]
    texts = list(X)
    for place, text in enumerate(texts):
        if not isinstance(text, str):  # encode would take two strings for a pair
            raise TypeError(f"X[{place}] is a {type(text).__name__}, wanted a string")
    return texts
