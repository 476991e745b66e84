"""Which device and how many CPU cores are usable here, and memory that is given back."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pluralllm_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

_HALF_PRECISION_BYTES = 2**30


def torch_device(name: str) -> "torch.device":
    """Return a device of PyTorch; "auto" is CUDA if present, else CPU.

    Raises
    ------
    ConfigError
        If there is no such device, or it cannot be used here.
    """
    import torch  # the launcher counts cores without it

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = '{name}' is not usable here ({str(error).splitlines()[0]}). "
            "Use 'auto' or 'cpu'."
        ) from error
    return device


def model_dtype(device: "torch.device", weights_bytes: int) -> str:
    """Return the number format in which a language model of this size computes on a device.

    On CPU that is float32; elsewhere weights above 1 GiB run in half precision.
    """
    if device.type == "cpu" or weights_bytes <= _HALF_PRECISION_BYTES:
        return "float32"
    import torch

    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
    return "bfloat16" if bf16 else "float16"


def available_cpus() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_threads_lock = threading.Lock()
_threads: list[int] = []  # the caller's number, then that of every `torch_threads` that is open


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads, then with as many as before.

    The number is one for the whole process, so what other threads of the caller compute meanwhile
    has it too; when the last block is left, in whatever order, the caller's is back.
    """
    import torch

    with _threads_lock:
        if not _threads:
            _threads.append(torch.get_num_threads())
        _threads.append(number)
        torch.set_num_threads(number)
    try:
        yield
    finally:
        with _threads_lock:
            del _threads[-1 - _threads[::-1].index(number)]
            torch.set_num_threads(_threads[-1])
            if len(_threads) == 1:
                _threads.clear()


def release_memory() -> None:
    """Give freed memory back to the system; glibc would keep a round's replies in its heap.

    Its setting for that (``MALLOC_MMAP_THRESHOLD_``) doubles the time of training.
    """
    # Delete when Flower frees a reply's buffers outside the C heap.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
