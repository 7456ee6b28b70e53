"""Every way in which memory runs out is "not enough memory" with the way out, and nothing else is."""

from __future__ import annotations

import errno

import pytest

from SPDSegmentLib.cli.terminal import as_spd_error
from SPDSegmentLib.errors import BadInput, DependencyMissing, ModelCorrupt, OutOfMemory, is_out_of_memory
from SPDSegmentLib.worker.pipes import to_error


def caused(outer: Exception, inner: BaseException) -> Exception:
    """An exception raised from another one."""
    outer.__cause__ = inner
    return outer


SHORT = {
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 4.00 GiB for an array with shape (1024, 1024, 1024)"),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    "torch on Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 33554432 bytes."),
    "cuda": type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    "onednn": RuntimeError("could not create a primitive"),
    "c++": RuntimeError("std::bad_alloc"),
    "thread": RuntimeError("can't start new thread"),
    "fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "import": ImportError("libtorch_cpu.so: failed to map segment from shared object", name="_C"),
    "import on Windows": ImportError("DLL load failed while importing _C: The paging file is too small", name="_C"),
    "behind a missing package": caused(DependencyMissing("The package 'peft' cannot be imported."), MemoryError()),
    "behind a damaged model": caused(ModelCorrupt("The adapter is damaged."), RuntimeError("std::bad_alloc")),
    "behind a lookup": caused(KeyError("x"), caused(ValueError("y"), MemoryError())),
}
OTHER = {
    "a bug": ValueError("negative dimensions"),
    "a missing package": ModuleNotFoundError("No module named 'torch'", name="torch"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "an unsupported operation": RuntimeError("could not create a primitive descriptor for a convolution"),
    "the loader's own limit": ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    "bad input": BadInput("The file says 'out of memory'."),
}


@pytest.mark.parametrize("raised", SHORT.values(), ids=SHORT)
def test_short_memory_is_said_with_the_way_out_by_worker_and_command_line(raised: Exception) -> None:
    for error in (to_error(raised), as_spd_error(raised)):
        assert type(error) is OutOfMemory
        assert "not enough memory" in error.message
        assert "Close other programs" in error.remedy


@pytest.mark.parametrize("raised", OTHER.values(), ids=OTHER)
def test_other_failures_are_not_taken_for_short_memory(raised: Exception) -> None:
    assert not is_out_of_memory(raised)
    assert not isinstance(to_error(raised), OutOfMemory)
    assert not isinstance(as_spd_error(raised), OutOfMemory)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)
