"""Loans of memory: exact in size, used again when given back, and never readable afterwards."""

import struct

import pytest

from node.buffers import BufferPool

KIB = 1024


def test_a_loan_has_the_size_asked_for_and_comes_back() -> None:
    pool = BufferPool()
    first = pool.lend(100 * KIB)
    assert len(first.view) == 100 * KIB
    first.view[:5] = b"hello"
    first.release()
    assert pool.kept_bytes == 128 * KIB
    second = pool.lend(70 * KIB)
    assert bytes(second.view[:5]) == b"hello", "the same memory, not cleared"
    assert pool.kept_bytes == 0


def test_what_was_given_back_cannot_be_read_any_more() -> None:
    pool = BufferPool()
    buffer = pool.lend(KIB)
    view = buffer.view
    buffer.release()
    buffer.release()
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert pool.kept_bytes == 64 * KIB, "given back once, however often it is said"


def test_memory_that_a_call_still_works_on_is_not_lent_again() -> None:
    pool = BufferPool()
    buffer = pool.lend(KIB)
    held_by_a_call = struct.iter_unpack("B", buffer.view)
    buffer.release()
    assert pool.kept_bytes == 0
    assert len(list(held_by_a_call)) == KIB


def test_the_rest_that_is_kept_is_bounded() -> None:
    pool = BufferPool(kept_bytes_max=256 * KIB)
    loans = [pool.lend(128 * KIB) for _ in range(4)]
    for loan in loans:
        loan.release()
    assert pool.kept_bytes == 256 * KIB
