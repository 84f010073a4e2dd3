"""What a training asks of memory: that freed blocks stay, and that a want of it is told from every other error.

Freed memory stays with the process, so that the next step does not ask the kernel for it page by page: a vmapped step of a conv
net frees and allocates hundreds of megabytes; with the C library's default thresholds each goes back to the kernel and comes
back as zeroed pages: 330,000 page faults a step on Conv-4 with 80 pictures a task, a third of its time.
"""
from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Blocks up to 256 MiB come from the heap, which gives memory back only above 1 GiB of it. False where the C library has
    no such dial (musl, macOS, Windows): nothing is changed there."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  other C libraries have a mallopt that takes other numbers
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, 1 << 28)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30))
    except (OSError, AttributeError, TypeError):
        return False


def out_of_memory(error: BaseException) -> bool:
    """Is this a want of memory, of the machine's or of a GPU's?"""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # what torch raises for the CPU, and what cuBLAS and cuDNN raise when their workspaces do not fit
    marks = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def release() -> None:
    """Gives back what an attempt that ran out of memory has left behind in this process."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
