"""RoutedEncoder: a trained encoder and a trained router together, texts in, rankings out."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any, Final, Self

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from maw_gym.encoders.embedder import Embedder, encoded_documents
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.text import prompt_of
from maw_gym.errors import DamagedFileError, InputError, checked_int, checked_texts, one_of, shown
from maw_gym.files import MANIFEST, expanded, written_folder
from maw_gym.retrieval.bm25 import WEIGHT, Words
from maw_gym.retrieval.documents import DocumentIndex, check_finite, check_ids, steps
from maw_gym.retrieval.index import EXACT, SearchIndex
from maw_gym.retrieval.ranking import LONG, SHORT, ranking_statistics
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.tables.depth_table import Seen, checked_blocks, nothing_observed, observed
from maw_gym.tables.task import RetrievalTask, resolve_device

ENCODER_FILE: Final = "encoder.safetensors"
ROUTER_FILE: Final = "router.safetensors"
INDEX: Final = "index"  # folder of the documents to search
BATCH: Final = 4096  # texts looked at at once
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16}
Vectors = NDArray[np.float32] | Tensor
MTEB_ARGUMENTS: Final = {"task_name", "task_metadata", "hf_split", "hf_subset"}


class RoutedEncoder:
    """Queries through the depth that a router chooses, documents through the standard attention.

    Args:
        embedder: with a MAW encoder.
        router: trained for this very encoder.
        dataset: name of the collection that the router was trained on, where it is known.
        device: where everything is computed.

    Attributes:
        documents: what `search` searches, None before `index` or `load`.
        hybrid_weight: of the cosines beside BM25 in a hybrid search, chosen on validation queries
            where the run has done so, else 0.5.

    Raises:
        InputError: the router was trained for another encoder, or does not fit this one.
    """

    # As sentence-transformers' evaluators ask for them.
    similarity_fn_name = "cosine"
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

    def __init__(
        self,
        embedder: Embedder,
        router: "DepthRouter | _PolicyRouter",
        dataset: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        told, found = router.settings.get("encoder"), embedder.fingerprint()
        if told != found:
            raise InputError(
                f"this router was trained for encoder {str(told)[:12]}, not {found[:12]}; depths of"
                " one encoder mean nothing in another"
            )
        self.embedder = embedder.to(device)
        self.router: Any = router.to(device)
        self.dataset = dataset
        self.documents: SearchIndex | None = None
        weight = router.settings.get("hybrid_weight", WEIGHT)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise InputError(f"hybrid_weight of a router must lie in [0, 1], got {shown(weight)}")
        self.hybrid_weight = float(weight)
        inputs, depths = self.observe([]).shape[1], self.embedder.maw.depths
        if (inputs, depths) != (router.inputs, router.depths):
            raise InputError(
                f"this router has {router.inputs} inputs and {router.depths}"
                f" depths; the encoder gives {inputs} and has {depths}"
            )

    @property
    def prompts(self) -> dict[str, str]:
        """What goes before every "query" and "document", as the text encoder was trained."""
        return {kind: prompt_of(self.embedder.text, kind) for kind in ("query", "document")}

    @classmethod
    def from_run(cls, path: str | Path, device: str = "auto") -> Self:
        """The encoder and the router that a training run has left; no code in the files is run.

        Args:
            path: folder with encoder.safetensors and router.safetensors.
            device: "auto", "cpu" or a torch device.
        """
        folder = expanded(path)
        if not os.path.isdir(folder):
            raise InputError(f"no run folder {str(folder)!r}; give the folder of a training run")
        embedder, _ = load_embedder(folder / ENCODER_FILE)
        router = load_router(folder / ROUTER_FILE)
        return cls(embedder, router, router.settings.get("dataset"), resolve_device(device))

    @classmethod
    def from_model(
        cls, task: RetrievalTask, model: Any, observation: str | Sequence[str] = "attention"
    ) -> Self:
        """What any model of Stable-Baselines3 has learned, over the documents of its task.

        Args:
            task: whose environment the model was trained on.
            model: has SB3's `predict`, `observation_space` and `action_space`: an algorithm with
                whatever policy, or a policy alone. It is asked, and not saved; see
                `maw_gym.agents.networks.GRPORouter`.
            observation: blocks of the model's observation, in order.
        """
        encoder = task.embedder.fingerprint()
        router = _PolicyRouter(model, checked_blocks(observation), {"encoder": encoder})
        routed = cls(task.embedder, router, task.collection.name, task.device)
        routed.documents = SearchIndex(task.index, encoder, texts=task.collection.doc_texts)
        return routed

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder and the router to another device; an index stays where it is."""
        where = resolve_device(str(device))
        self.embedder, self.router = self.embedder.to(where), self.router.to(where)
        return self

    def encode(
        self,
        texts: str | Iterable[Any],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = BATCH,
        show_progress_bar: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        device: torch.device | str | None = None,
        prompt_type: Any = None,
        **about: Any,
    ) -> NDArray[np.float32] | Tensor | list[Tensor]:
        """Embeddings of texts; arguments and results are those of sentence-transformers and MTEB.

        Args:
            texts: one text or N of them, or batches ``{"text": texts}``, as MTEB has them.
            prompt_name: "query" encodes queries, each through the depth that the router chooses for
                it; otherwise documents are encoded, through the standard attention. Either kind has
                the prompt of `prompts`.
            prompt: goes before every text, behind that.
            batch_size: texts looked at at once.
            show_progress_bar: over batches.
            convert_to_numpy: an array; a list of tensors where this and the next are False.
            convert_to_tensor: a tensor on the encoder's device in the place of an array.
            normalize_embeddings: makes no difference, they always are.
            truncate_dim: how many of the h numbers to keep; None keeps all.
            device: where to compute from now on, see `to`.
            prompt_type: MTEB's word for `prompt_name`.
            about: MTEB's words on its task, which make no difference.

        Returns:
            (h,) for one text, (N, h) for several; float32, of unit length, zero for a text without
            tokens.
        """
        del normalize_embeddings
        if unknown := about.keys() - MTEB_ARGUMENTS:
            raise TypeError(f"encode() got an unexpected argument {min(unknown)!r}")
        if device is not None:
            self.to(device)
        listed = [texts] if isinstance(texts, str) else _texts(texts)
        if prompt:
            listed = [prompt + text for text in listed]
        queries = "query" in (prompt_name, getattr(prompt_type, "value", prompt_type))
        embeddings = torch.zeros(len(listed), self.embedder.text.width, device=self.embedder.device)
        batches = list(steps(len(listed), checked_int(batch_size, "batch_size", 1)))
        for some in tqdm(batches, disable=not show_progress_bar, leave=False):
            if queries:
                embeddings[some] = self._routed(listed[some])[0]
            else:
                embeddings[some] = self.embedder.encode_documents(listed[some])
        check_finite(embeddings, "text")
        if truncate_dim is not None:
            embeddings = torch.nn.functional.normalize(embeddings[:, :truncate_dim], dim=1)
        embeddings = embeddings[0] if isinstance(texts, str) else embeddings
        if convert_to_tensor:
            return embeddings
        if convert_to_numpy:
            return embeddings.cpu().numpy()
        return embeddings if isinstance(texts, str) else list(embeddings)

    def encode_query(self, texts: str | Iterable[Any], **how: Any) -> Any:
        """Embeddings of queries, each through the depth that the router chooses; see `encode`."""
        return self.encode(texts, **how | {"prompt_name": "query"})

    def encode_document(self, texts: str | Iterable[Any], **how: Any) -> Any:
        """Embeddings of documents, through the standard attention; see `encode`."""
        return self.encode(texts, **how | {"prompt_name": "document"})

    def encode_queries(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings (N, h) of queries, and the depths (N,) that they are encoded through."""
        embeddings, depths = self._routed(checked_texts(texts))
        return embeddings.cpu().numpy(), depths

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (N, h) of documents."""
        return np.asarray(self.encode_document(checked_texts(texts)))

    def route(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The depths (N,) that queries are encoded through."""
        depths: NDArray[np.int64] = self.router.predict(self.observe(texts))[0]
        return depths

    def similarity(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Cosines (A, B) of embeddings (A, h) and (B, h); a single one (h,) counts as one row."""
        first, second = _unit(queries), _unit(documents)
        return first @ second.to(first.device).T

    def similarity_pairwise(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Cosines (A,) of embeddings (A, h) with those (A, h) in the same rows."""
        first, second = _unit(queries), _unit(documents)
        return (first * second.to(first.device)).sum(-1)

    def observe(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Observations (N, O) of the router, as a depth table has them.

        The block `retrieval` is made of D + 1 searches for every query, which need documents.
        """
        return self._observed(self.embedder.query_ids(checked_texts(texts)))

    def index(
        self,
        doc_ids: Iterable[str],
        texts: Iterable[str],
        *,
        index: str = EXACT,
        hybrid: bool = True,
        store: bool = False,
        folder: str | Path | None = None,
        dtype: str = "float32",
    ) -> Self:
        """Encode the documents to search, which may be streams, in the place of earlier ones.

        Args:
            doc_ids: N different ids.
            texts: N texts.
            index: "exact", or for approximate search "faiss:" and a string of FAISS's index
                factory, whose numbers are 2 or more: "faiss:HNSW32". Behind a semicolon may stand
                parameters of the search: "faiss:IVF1024,Flat;nprobe=16".
            hybrid: count words too, for `search(..., hybrid=True)`.
            store: hold the texts, for `search(..., texts=True)`, `add` and `remove`.
            folder: where the index is written, in the place of one that is there, and mapped from;
                None keeps it in memory.
            dtype: of the embeddings, "float32" or "float16".
        """
        one_of("dtype", dtype, tuple(DTYPES))
        if isinstance(doc_ids, Collection) and isinstance(texts, Collection):
            # At once; of streams, when it comes to light.
            doc_ids, texts = checked_texts(doc_ids, "document ids"), checked_texts(texts)
            if len(doc_ids) != len(texts):
                raise InputError(f"{len(doc_ids)} document ids for {len(texts)} texts")
            check_ids(doc_ids)
        if index != EXACT and not index.startswith("faiss:"):
            raise InputError(f"unknown index {index!r}; give 'exact' or 'faiss:' and a factory")
        words, stored = Words() if hybrid else None, list[str]() if store else None
        see = [
            *([] if words is None else [words.add]),
            *([] if stored is None else [stored.extend]),
        ]
        ids, vectors = encoded_documents(self.embedder, doc_ids, texts, DTYPES[dtype], see)
        place = None if folder is None else expanded(folder)
        device = self.embedder.device
        made = [DocumentIndex(ids, vectors if place else vectors.to(device), device)]
        del vectors
        encoder = self.embedder.fingerprint()
        # Handed over: what was written is mapped after the vectors in memory are gone.
        self.documents = SearchIndex.of(made.pop(), encoder, words, index, place, stored)
        return self

    def add(self, doc_ids: Sequence[str], texts: Sequence[str]) -> Self:
        """Encode more documents and index them with those there are, in memory; see `save`.

        Where words are counted the texts of all documents have to be stored.
        """
        there = self._indexed()
        doc_ids, texts = checked_texts(doc_ids, "document ids"), checked_texts(texts)
        check_ids([*there.documents.doc_ids, *doc_ids])
        dtype = there.documents.vectors.dtype
        ids, vectors = encoded_documents(self.embedder, doc_ids, texts, dtype)
        everything = np.arange(len(there.documents))
        self.documents = there.changed(everything, ids, vectors, texts)
        return self

    def remove(self, doc_ids: Iterable[str]) -> Self:
        """Leave documents out from now on; an InputError where an id is unknown, else as `add`."""
        there = self._indexed()
        gone = there.documents.places(checked_texts(doc_ids, "document ids"))
        left = np.setdiff1d(np.arange(len(there.documents)), gone)
        self.documents = there.changed(left, [], there.documents.vectors[:0], [])
        return self

    def search(
        self,
        queries: str | Sequence[str],
        k: int = 10,
        *,
        hybrid: bool = False,
        only: Iterable[str] | Callable[[str], bool] | None = None,
        texts: bool = False,
    ) -> list[Any]:
        """The best documents of one query, or of each of several.

        Args:
            queries: one text or N of them.
            k: documents per query; all of them where there are fewer.
            hybrid: fuse the cosines with BM25, by `hybrid_weight`.
            only: ids of the documents to search, or what says of an id whether its document is to
                be searched; None searches all. With it an approximate search is exact.
            texts: give the texts too, which `index(..., store=True)` has stored.

        Returns:
            For each query a list of ``{"id": document id, "score": cosine}``, best first; equal
            scores in trec_eval's order. Documents without tokens come last with a score of -2.
            Fused scores are no cosines: sums of standardised scores, which compare within a query.
        """
        there = self._indexed()
        k = checked_int(k, "k", 1)
        if texts and there.texts is None:
            raise InputError("this index has no texts; index the documents with store=True")
        listed = [queries] if isinstance(queries, str) else checked_texts(queries)
        names = there.documents.doc_ids
        if only is not None:
            only = checked_texts(filter(only, names) if callable(only) else only, "document ids")
        embeddings = self.encode_query(listed, convert_to_tensor=True)
        ranking = there.rank(embeddings, k, listed, self.hybrid_weight if hybrid else None, only)
        stored, found = there.texts if texts else None, []
        for row in zip(ranking.documents.tolist(), ranking.scores.tolist(), strict=True):
            best = [(d, {"id": names[d], "score": s}) for d, s in zip(*row, strict=True) if d >= 0]
            found.append([one | ({"text": stored[d]} if stored else {}) for d, one in best])
        return found[0] if isinstance(queries, str) else found

    def save(self, folder: str | Path) -> None:
        """Write encoder, router and, where there is one, the index, for `load`."""
        if not isinstance(self.router, DepthRouter):
            raise InputError(
                "a model is saved by its own library; to save an actor-critic here, give"
                " RoutedEncoder a router made of it by maw_gym.agents.GRPORouter"
            )
        place = expanded(folder)
        with written_folder(place / INDEX, MANIFEST) as temporary:
            if self.documents is not None:
                self.documents.write(temporary)
            index = {path.name for path in temporary.iterdir()}
            save_embedder(temporary / ENCODER_FILE, self.embedder, {})
            save_router(temporary / ROUTER_FILE, self.router)
            for path in sorted(temporary.iterdir()):  # whatever can fail has been done
                target = place / path.name
                if path.name not in index:
                    if target.is_dir():  # of a transformer, whose name is a key of its content
                        rmtree(target)
                    path.replace(target)
        if self.documents is None:
            rmtree(place / INDEX)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Self:
        """What `save` has written to a folder; see `from_run`. Vectors of an index are mapped."""
        routed = cls.from_run(folder, device)
        place = expanded(folder) / INDEX
        if place.exists():
            encoder = routed.embedder.fingerprint()
            found = SearchIndex.load(place, encoder, routed.embedder.device)
            width = found.documents.vectors.shape[1]
            if width != routed.embedder.text.width:
                raise DamagedFileError(f"{place} holds no index: its vectors have {width} numbers")
            routed.documents = found
        return routed

    def _indexed(self) -> SearchIndex:
        if self.documents is None:
            raise InputError("there is nothing to search yet; call index(doc_ids, texts) first")
        return self.documents

    def _routed(self, texts: list[str]) -> tuple[Tensor, NDArray[np.int64]]:
        """Embeddings (N, h) of queries, and the depths (N,) that they were routed through."""
        ids = self.embedder.query_ids(texts)
        depths, _ = self.router.predict(self._observed(ids))
        return self.embedder.encode_ids(ids, torch.from_numpy(depths)), depths

    @torch.no_grad()
    def _observed(self, ids: list[list[int]]) -> NDArray[np.float32]:
        """Observations (N, O) of queries given as token ids."""
        embedder, blocks = self.embedder, self.router.observation
        if not ids:
            return np.concatenate([nothing_observed(name, embedder) for name in blocks], axis=1)

        def search(embeddings: Tensor) -> Tensor:  # (B, D, h)
            there, mean = self._indexed(), torch.nn.functional.normalize(embeddings.mean(1), dim=-1)
            found = there.rank(embeddings.flatten(0, 1), LONG)
            scores, names = (part.view(*embeddings.shape[:2], -1) for part in found)
            return ranking_statistics(scores, names, there.rank(mean, SHORT).documents)

        rows: dict[int, NDArray[np.float32]] = {}
        for places, batch, mask in embedder.batches(ids, embedder.statistics_tokens):
            seen = Seen(embedder, batch, mask, search)
            found = np.concatenate([observed(name, seen) for name in blocks], axis=1)
            rows |= zip(places.tolist(), found, strict=True)
        return np.stack([rows[place] for place in range(len(ids))])


class _PolicyRouter:
    """A model of Stable-Baselines3 in the place of a `DepthRouter`."""

    def __init__(self, model: Any, observation: tuple[str, ...], settings: dict[str, Any]) -> None:
        self.model, self.observation, self.settings = model, observation, settings
        actions = getattr(model, "action_space", None)
        seen = getattr(model, "observation_space", None)
        if not isinstance(actions, Discrete) or actions.start != 0 or not isinstance(seen, Box):
            raise InputError(
                f"depths are Discrete actions from 0; this model has {shown(actions)} and observes"
                f" {shown(seen)}, not a Box"
            )
        self.inputs, self.depths = int(np.prod(seen.shape)), int(actions.n)

    def predict(self, observation: NDArray[np.float32]) -> tuple[NDArray[np.int64], None]:
        """Depths (B,) of observations (B, O)."""
        if not len(observation):
            return np.zeros(0, np.int64), None
        return np.asarray(self.model.predict(observation, deterministic=True)[0], np.int64), None

    def to(self, device: torch.device | str) -> Self:
        """Itself: a model stays where it is."""
        del device
        return self


def _texts(given: Iterable[Any]) -> list[str]:
    """Texts, some of which may come in MTEB's batches."""
    if isinstance(given, Iterable) and not isinstance(given, (str, Mapping)):
        given = list(given)
        if given and all(isinstance(one, Mapping) and "text" in one for one in given):
            given = [text for batch in given for text in checked_texts(batch["text"])]
    return checked_texts(given)


def _unit(embeddings: Vectors) -> Tensor:
    given = torch.atleast_2d(torch.as_tensor(embeddings)).float()
    return torch.nn.functional.normalize(given, dim=1)
