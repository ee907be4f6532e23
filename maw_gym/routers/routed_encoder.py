"""RoutedEncoder: a trained encoder and a trained router together, texts in, rankings out."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from maw_gym.encoders.embedder import Embedder, encoded_documents
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.text import prompt_of
from maw_gym.errors import InputError, checked_int, checked_texts, expanded, one_of, shown
from maw_gym.files import MANIFEST, written_folder
from maw_gym.retrieval.bm25 import WEIGHT, Words
from maw_gym.retrieval.documents import DocumentIndex, check_finite, check_ids, steps
from maw_gym.retrieval.index import EXACT, SearchIndex
from maw_gym.routers.depth_router import DepthRouter, ModelRouter, load_router, save_router
from maw_gym.tables.depth_table import Seen, checked_blocks, nothing_observed, observed
from maw_gym.tables.task import RetrievalTask, resolve_device

ENCODER_FILE: Final = "encoder.safetensors"
ROUTER_FILE: Final = "router.safetensors"
INDEX: Final = "index"  # folder of the documents to search
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16}
Vectors = NDArray[np.float32] | Tensor
IGNORED: Final = {"normalize_embeddings", "task_name", "task_metadata", "hf_split", "hf_subset"}


class RoutedEncoder:
    """Queries through the depth that a router chooses, documents through the standard attention.

    Args:
        embedder: with a MAW encoder.
        router: trained for this very encoder.
        dataset: name of the collection that the router was trained on, where it is known.
        device: where everything is computed.

    Attributes:
        documents: what `search` searches, None before `index` or `load`.
        prompts: what goes before every "query" and "document", as the text encoder was trained.
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
        router: DepthRouter | ModelRouter,
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
        self.prompts = {kind: prompt_of(embedder.text, kind) for kind in ("query", "document")}
        weight = router.settings.get("hybrid_weight", WEIGHT)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise InputError(f"hybrid_weight of a router must lie in [0, 1], got {shown(weight)}")
        self.hybrid_weight = float(weight)
        inputs = sum(nothing_observed(one, self.embedder).shape[1] for one in router.observation)
        if (inputs, embedder.maw.depths) != (router.inputs, router.depths):
            raise InputError(
                f"this router has {router.inputs} inputs and {router.depths} depths; the encoder"
                f" gives {inputs} and has {embedder.maw.depths}"
            )

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
        router = ModelRouter(model, checked_blocks(observation), {"encoder": encoder})
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
        batch_size: int = 4096,
        show_progress_bar: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
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
            truncate_dim: how many of the h numbers to keep; None keeps all.
            device: where to compute from now on, see `to`.
            prompt_type: MTEB's word for `prompt_name`.
            about: `normalize_embeddings`, which they always are, and MTEB's words on its task.

        Returns:
            (h,) for one text, (N, h) for several; float32, of unit length, zero without tokens.
        """
        if unknown := about.keys() - IGNORED:
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
        found = embeddings[0] if isinstance(texts, str) else embeddings
        if convert_to_numpy and not convert_to_tensor:
            return found.cpu().numpy()
        return found if convert_to_tensor or isinstance(texts, str) else list(found)

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
        return np.asarray(self.router.predict(self.observe(texts))[0])

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
            index: "exact", or "faiss:" and a string of FAISS's index factory, whose numbers are 2
                or more, and parameters of the search: "faiss:HNSW32", "faiss:IVF9,Flat;nprobe=2".
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
        see: list[Callable[[list[str]], object]] = []
        if words is not None:
            see.append(words.add)
        if stored is not None:
            see.append(stored.extend)
        ids, vectors = encoded_documents(self.embedder, doc_ids, texts, DTYPES[dtype], see)
        place, device = None if folder is None else expanded(folder), self.embedder.device
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
        old = self._indexed().documents
        doc_ids, texts = checked_texts(doc_ids, "document ids"), checked_texts(texts)
        check_ids([*old.doc_ids, *doc_ids])
        ids, vectors = encoded_documents(self.embedder, doc_ids, texts, old.vectors.dtype)
        self.documents = self._indexed().changed(np.arange(len(old)), ids, vectors, texts)
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
            index = set(temporary.iterdir())
            save_embedder(temporary / ENCODER_FILE, self.embedder, {})
            save_router(temporary / ROUTER_FILE, self.router)
            # Whatever can fail has been done.
            for path in sorted(set(temporary.iterdir()) - index):
                target = place / path.name
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
            routed.documents = SearchIndex.load(place, encoder, routed.embedder.device)
            width = routed.documents.documents.vectors.shape[1]
            if width != routed.embedder.text.width:
                raise InputError(f"{place} holds no index: its vectors have {width} numbers")
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
        result = np.zeros((len(ids), self.router.inputs), np.float32)
        for places, batch, mask in embedder.batches(ids, embedder.statistics_tokens):
            seen = Seen(embedder, batch, mask, lambda of: self._indexed().statistics(of))
            found = np.concatenate([observed(name, seen) for name in blocks], axis=1)
            result[places.tolist()] = found
        return result


def _texts(given: Iterable[Any]) -> list[str]:
    """Texts, some of which may come in MTEB's batches."""
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        given = list(given)
        if given and all(isinstance(one, Mapping) and "text" in one for one in given):
            given = [text for batch in given for text in checked_texts(batch["text"])]
    return checked_texts(given)


def _unit(embeddings: Vectors) -> Tensor:
    given = torch.atleast_2d(torch.as_tensor(embeddings)).float()
    return torch.nn.functional.normalize(given, dim=1)
