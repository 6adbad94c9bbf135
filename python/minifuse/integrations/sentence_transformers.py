"""An object of sentence-transformers' own class behind which minifuse computes.

Libraries that test for that class, or for its name, take it; what they call is ours.
"""

from __future__ import annotations

from typing import Any

__all__ = ["as_sentence_transformer"]


def as_sentence_transformer(model: Any) -> Any:
    """Return a model as an instance of sentence_transformers.SentenceTransformer.

    Everything public is the given model's: encode, similarity, prompts, tokenizer, save_pretrained.
    It has no parameters for PyTorch to train.

    Args:
        model: a minifuse.SentenceTransformer.

    Raises:
        ImportError: sentence-transformers is not installed.
        TypeError: model is something else.
    """
    from minifuse.sentence_transformer import SentenceTransformer

    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"model is a {type(model).__name__}, wanted a minifuse.SentenceTransformer")
    try:
        import sentence_transformers
        import torch
    except ImportError as error:
        raise ImportError(
            "this needs sentence-transformers: pip install sentence-transformers"
        ) from error

    base: Any = sentence_transformers.SentenceTransformer
    # These give the object itself back, or PyTorch's own are called by its other methods.
    kept = {"to", "cpu", "eval", "children", "named_children"}
    ours = {name for name in dir(model) if not name.startswith("_")} - kept
    ours |= {"_first_module", "_last_module"}

    class StandIn(base):
        """minifuse's model under sentence-transformers' name."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def __getattribute__(self, name: str) -> Any:
            return getattr(model, name) if name in ours else super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in ours:
                setattr(model, name, value)
            else:
                super().__setattr__(name, value)

        def to(self, device: Any = None) -> Any:
            """Return this model; any device but its own raises ValueError."""
            model.to(device)
            return self

        def cpu(self) -> Any:
            """The same as to("cpu")."""
            return self.to("cpu")

        def eval(self) -> Any:
            """Return this model: there is nothing but inference."""
            return self

        # Python looks these up in the class.

        def __len__(self) -> int:
            return len(model)

        def __getitem__(self, index: Any) -> Any:
            return model[index]

        def __iter__(self) -> Any:
            return iter(model)

        def __repr__(self) -> str:
            return repr(model)

        def __reduce__(self) -> tuple[Any, ...]:
            return (as_sentence_transformer, (model,))

    # Some libraries look for the name of the package in that of the class.
    StandIn.__module__, StandIn.__qualname__ = base.__module__, base.__qualname__
    StandIn.__name__ = base.__name__
    return StandIn()
