"""Launches recorded once and replayed as one: small batches on a GPU wait for launches alone.

A CUDA graph replays what was launched on the very memory it was recorded with. So a recording reads
buffers of its own, into which the inputs of each call are copied, and its result is copied out.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Function = Callable[[], Tensor]
Recorder = Callable[[Function], tuple[Tensor, Callable[[], None]]]

COUNTED = 1024  # keys whose calls are counted; with more, counting starts again


class Recording(NamedTuple):
    """A function's launches.

    Attributes:
        buffers: what they read; a call copies its inputs here.
        result: what they write, overwritten by each replay.
        replay: launches them again.
    """

    buffers: tuple[Tensor, ...]
    result: Tensor
    replay: Callable[[], None]


class Replays:
    """Recordings of functions whose calls recur with inputs of equal form.

    A function is recorded when it is called with one key for the third time, since most shapes come
    once or twice. Where recording fails, every call is made directly from then on.

    Args:
        record: runs a function and returns its result and what runs it again, into that result;
            RuntimeError where it cannot.
        most: recordings kept; the one not used for longest goes.
        direct: calls of a key before it is recorded.
    """

    def __init__(self, record: Recorder, most: int = 16, direct: int = 2) -> None:
        self._record = record
        self._most = most
        self._direct = direct
        self._calls: Counter[Hashable] = Counter()
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._works = True
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._recordings)

    def run(
        self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Tensor:
        """``function(*inputs)``, from a recording where there is one.

        Args:
            key: all that the launches depend on besides `inputs`, addresses of memory that they
                read in place among it.
            function: launches work on tensors like `inputs` and returns one new tensor.
            inputs: on one device. They may change, and lie elsewhere, from call to call.
        """
        key = (key, *((one.shape, one.stride(), one.dtype, one.device) for one in inputs))
        with self._lock:
            recording = self._recordings.get(key)
            if recording is None and self._recurs(key):
                recording = self._recorded(key, function, inputs)
            if recording is not None:
                self._recordings.move_to_end(key)
                for buffer, given in zip(recording.buffers, inputs, strict=True):
                    buffer.copy_(given)
                recording.replay()
                return recording.result.clone()
        return function(*inputs)

    def _recurs(self, key: Hashable) -> bool:
        if not self._works:
            return False
        if len(self._calls) >= COUNTED:
            self._calls.clear()
        self._calls[key] += 1
        return self._calls[key] > self._direct

    def _recorded(
        self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Recording | None:
        try:
            # Buffers made in inference mode could not be written to outside it.
            with torch.inference_mode(False), torch.no_grad():
                buffers = tuple(torch.empty_like(one).copy_(one) for one in inputs)
                result, replay = self._record(lambda: function(*buffers))
        except RuntimeError as error:
            self._works = False
            log.warning("launches are not recorded, small batches take longer: %s", error)
            return None
        recording = self._recordings[key] = Recording(buffers, result, replay)
        # Whatever is dropped has to recur anew: shapes that take turns must not record every time.
        del self._calls[key]
        if len(self._recordings) > self._most:
            self._recordings.popitem(last=False)
        return recording


class GraphRecorder:
    """Records launches on a GPU as CUDA graphs that share one pool of memory.

    Sharing is safe since replays follow each other on the default stream, see `recordable`, and a
    result is copied before the next. All recordings are made on one other stream of the device:
    memory that one of them has freed serves the next.
    """

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._pool: Any = None  # a handle of torch, made with the first recording

    def __call__(self, function: Function) -> tuple[Tensor, Callable[[], None]]:
        """Run `function` to warm up, then record it; see `Replays`."""
        current = torch.cuda.current_stream()
        if current.device_index not in self._streams:
            self._streams[current.device_index] = torch.cuda.Stream()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream = self._streams[current.device_index]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function()  # compiles kernels, and makes what libraries keep for a stream
            # Not torch.cuda.graph, which collects garbage and empties the allocator's cache first.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = function()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return result, graph.replay


def recordable(tensor: Tensor) -> bool:
    """Whether launches on `tensor` can be recorded here and now: on a GPU's default stream."""
    return (
        tensor.is_cuda
        and not torch.compiler.is_compiling()
        and tensor.device.index == torch.cuda.current_device()
        and torch.cuda.current_stream() == torch.cuda.default_stream()
        and not torch.cuda.is_current_stream_capturing()
    )
