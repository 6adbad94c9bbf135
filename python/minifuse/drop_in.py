"""Names that programs made for sentence-transformers ask of a model beside its results: parts,
devices, pools of processes, evaluators, the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from minifuse.models.parts import Transformer
from minifuse.models.pipeline import Pipeline
from minifuse.native.devices import Device, resolve_device

__all__ = ["DropIn", "ModelCard"]

Model = TypeVar("Model", bound="DropIn")


class ModelCard:
    """A place for the results of sentence-transformers' evaluators, kept in order.

    Attributes:
        metrics: (evaluator, its results, epoch, step) each.
    """

    def __init__(self) -> None:
        self.metrics: list[tuple[Any, dict[str, Any], int, int]] = []

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep the results of an evaluator."""
        self.metrics.append((evaluator, metrics, epoch, step))


class DropIn:
    """Names of sentence-transformers' models that have a meaning here, or do no harm."""

    pipeline: Pipeline
    save_pretrained: Any  # of the model: push_to_hub calls it

    # ---- parts ------------------------------------------------------------------------------

    def _parts(self) -> list[Any]:
        """The parts as minifuse.models.parts shows them."""
        return [Transformer(self)]

    def __len__(self) -> int:
        return len(self._parts())

    def __getitem__(self, index: Any) -> Any:
        return self._parts()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts())

    def children(self) -> Iterator[Any]:
        """Yield each part."""
        return iter(self)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """Yield each part with its number as a string."""
        return ((str(number), part) for number, part in enumerate(self))

    def _first_module(self) -> Any:
        return self[0]

    def _last_module(self) -> Any:
        return self[-1]

    @property
    def config(self) -> SimpleNamespace:
        """config.json of the encoder, a key an attribute."""
        config: SimpleNamespace = Transformer(self).config
        return config

    @property
    def transformers_model(self) -> None:
        """None: no model of transformers is behind it."""
        return None

    def get_model_kwargs(self) -> list[str]:
        """Arguments that encode passes on to the parts: none."""
        return []

    # ---- devices ----------------------------------------------------------------------------

    @property
    def device(self) -> Device:
        """Device that the model runs on: "cpu" or "cuda:N"."""
        return self.pipeline.device

    _target_device = device

    def _check_device(self, device: Any) -> None:
        if device is not None and resolve_device(device) != self.device:
            raise ValueError(
                f"device is {str(device)!r}, but the model is on {self.device}: load it again "
                "with device="
            )

    def to(self: Model, device: Any = None) -> Model:
        """Returns the model; any device but its own raises ValueError."""
        self._check_device(device)
        return self

    def cpu(self: Model) -> Model:
        """The same as to("cpu")."""
        return self.to("cpu")

    def eval(self: Model) -> Model:
        """Returns the model: there is nothing but inference."""
        return self

    def get_backend(self) -> str:
        """ "minifuse" """
        return "minifuse"

    # ---- inputs -----------------------------------------------------------------------------

    @property
    def modalities(self) -> list[str]:
        """Kinds of inputs: text."""
        return ["text"]

    def supports(self, modality: Any) -> bool:
        """Return whether the model takes this kind of input."""
        return bool(modality == "text")

    def start_multi_process_pool(self, target_devices: Any = None) -> dict[str, Any]:
        """Returns an empty pool: threads of this process do the work."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Empties a pool, which has no processes to end."""
        pool.clear()

    def evaluate(self, evaluator: Callable[..., Any], output_path: str | None = None) -> Any:
        """Returns evaluator(model, output_path), the folder being there if one is given."""
        if output_path is not None:
            Path(output_path).mkdir(parents=True, exist_ok=True)
        return evaluator(self, output_path)

    # ---- the hub ----------------------------------------------------------------------------

    def push_to_hub(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        safe_serialization: bool = True,
        commit_message: str | None = None,
        local_model_path: str | None = None,
        exist_ok: bool = False,
        replace_model_card: bool = False,
        train_datasets: list[str] | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model to the Hugging Face hub.

        Args:
            repo_id: "name" or "organisation/name".
            token: None takes the one of `hf auth login`.
            private: of a new repository; None: as the organisation has it.
            safe_serialization, train_datasets: as save_pretrained takes them.
            commit_message: None says what is uploaded.
            local_model_path: upload this folder instead of what save_pretrained writes.
            exist_ok: the repository may be there already.
            replace_model_card: write a README.md though the model has one.
            revision: a branch, made where it is not there.
            create_pr: open a pull request instead of a commit.

        Returns:
            The address of the commit or of the pull request.

        Raises:
            OSError: the hub refuses or cannot be reached.
        """
        import tempfile

        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        repo = hub.create_repo(
            repo_id=repo_id, private=private, repo_type=None, exist_ok=exist_ok or create_pr
        )
        if revision is not None:
            hub.create_branch(repo_id=repo.repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = local_model_path or str(Path(scratch) / "model")
            if local_model_path is None:
                self.save_pretrained(folder, repo.repo_id, True, train_datasets, safe_serialization)
            commit = hub.upload_folder(
                repo_id=repo.repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Add new {type(self).__name__} model",
                commit_description=self._description_of_request() if create_pr else None,
                revision=revision,
                create_pr=create_pr,
            )
        return str(commit.pr_url if create_pr else commit.commit_url)

    def _description_of_request(self) -> str:
        kind = type(self).__name__
        return (
            f"The files of a {kind} model, written by push_to_hub of minifuse: they load in "
            f"minifuse and in sentence-transformers as a {kind}."
        )
