"""The encoder in 8 bits: what its matrices' inputs reach on sample text, weights smoothed by it.

A matrix's inputs are quantised row by row, so an input channel that is large in every row would
take the resolution of all others. SmoothQuant (Xiao et al. 2023) hands a part of such a channel's
range to the weights, by the largest magnitude that it takes on sample text: here on sentences and
paragraphs of our own, so that a model needs no data to be loaded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minifuse import sample_text
from minifuse.loading import ModelFolder, load_encoder
from minifuse.native import core
from minifuse.tokenization import TextTokenizer

__all__ = ["input_maxima", "quantized_encoder"]


def input_maxima(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> npt.NDArray[np.float32]:
    """The largest magnitude of every input channel of every matrix, on the sample text.

    Returns:
        [num_hidden_layers, 3 hidden_size + intermediate_size]: what goes into Q, K and V, the
        attention's output matrix, W1 and W2, one after the other.
    """
    texts = [*sample_text.SENTENCES, *sample_text.paragraphs(4)]
    batch = tokenizer.encode(texts, folder.max_seq_length)
    encoder = load_encoder(folder)
    return encoder.input_maxima(batch.ids, batch.cu_seqlens(), num_threads=num_threads)


def quantized_encoder(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> core.Encoder:
    """The native encoder with int8 weights. Raises and warns as load_encoder does."""
    return load_encoder(folder, "int8", input_maxima(folder, tokenizer, num_threads))
