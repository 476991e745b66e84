"""Memory of a server that collects the replies of many nodes, round after round."""

import contextlib
import ctypes


def release_memory() -> None:
    """Give freed memory back to the system; glibc would keep a round's replies in its heap.

    Its setting for that (``MALLOC_MMAP_THRESHOLD_``) doubles the time of training.
    """
    # Delete when Flower frees a reply's buffers outside the C heap.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
