"""A model in mteb's benchmarks (Muennighoff et al. 2022): mteb's encoder protocol over ours.

``mteb.evaluate(MtebEncoder(model), mteb.get_tasks(["STSBenchmark"]))`` runs any text task of mteb,
which chooses the metric and the data; ``pip install 'minifuse[mteb]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minifuse.sentence_transformer import SentenceTransformer

__all__ = ["MtebEncoder"]


class MtebEncoder:
    """mteb's ``EncoderProtocol``.

    The prompt of a task is chosen as mteb chooses it for a sentence-transformers model: by the
    task's name, its type, or "query" and "document", whichever the model's prompts have.

    Args:
        model: a SentenceTransformer of ours, or a name or folder to load one by.
        revision: of the name, where one is loaded.
        device: as SentenceTransformer takes it.
        kwargs: SentenceTransformer's other arguments, such as dtype.

    Raises:
        ImportError: mteb is not installed.
    """

    def __init__(
        self,
        model: SentenceTransformer | str,
        revision: str | None = None,
        *,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        from minifuse.sentence_transformer import SentenceTransformer

        try:
            from mteb.models.abs_encoder import get_prompt_name
            from mteb.models.model_meta import ModelMeta
        except ImportError as error:
            raise ImportError(
                "this needs mteb, which is not installed: pip install 'minifuse[mteb]'"
            ) from error
        if isinstance(model, str):
            model = SentenceTransformer(model, revision=revision, device=device, **kwargs)
        self.model = model
        self._prompt_name = get_prompt_name
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": _meta_name(model.name),
                "revision": revision or model.dtype,
                "embed_dim": model.get_embedding_dimension(),
                "max_tokens": model.max_seq_length,
                "similarity_fn_name": model.similarity_fn_name,
            }
        )

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Batches with a "text" each -> float32 [num_texts, dim], in order.

        ``batch_size`` and ``show_progress_bar`` of kwargs are obeyed, what else mteb passes is
        for other frameworks.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt_name = self._prompt_name(self.model.prompts or None, task_metadata, prompt_type)
        known = {
            name: kwargs[name] for name in ("batch_size", "show_progress_bar") if name in kwargs
        }
        vectors: npt.NDArray[np.float32] = self.model.encode(
            texts, prompt=self.model.prompts[prompt_name] if prompt_name else None, **known
        )
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Every row with every row: [n1, n2]."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Row i with row i: [n]."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


def _meta_name(name: str) -> str:
    """mteb files results under "organisation/model"."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:]) if len(parts) > 1 else f"local/{name}"
