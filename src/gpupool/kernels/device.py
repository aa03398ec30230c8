"""What runs on the GPU. The host code that checks and launches it is in move.py and digest.py.

Addresses come in tables of 64-bit numbers, so Triton knows nothing of their alignment. It is looked
at where bytes are moved, and then said of the pointer that is made of the number, upon which two
words of 8 bytes become one access of 16 (said of the number itself it is lost). Each alignment has
its own type of word, so that no pointer of one can be taken for that of another.

A launch has as many programs as it is given, and each takes its share of the work: a copy beside a
running model need not take the whole GPU. Counts are not specialised on: a kernel is compiled once.
"""

from __future__ import annotations

import triton
import triton.language as tl

BYTES_AT_ONCE = tl.constexpr(1024)  # where nothing is aligned


@triton.jit
def _move_words(
    source, destination, words, word: tl.constexpr, alignment: tl.constexpr, most: tl.constexpr
):
    """Copy ``words`` <= ``most`` words between addresses of that alignment."""
    read = tl.multiple_of(source.to(tl.pointer_type(word)), alignment)
    written = tl.multiple_of(destination.to(tl.pointer_type(word)), alignment)
    at = tl.arange(0, most)
    inside = at < words.to(tl.int32)
    tl.store(written + at, tl.load(read + at, mask=inside), mask=inside)


@triton.jit
def _move(source, destination, size, most: tl.constexpr):
    """Copy ``size`` <= ``most`` bytes from one address to another."""
    both = source | destination
    if both % 16 == 0:
        whole = size // 16 * 16
        # As twice the number of 16 bytes: so Triton sees that the mask is equal for both halves.
        _move_words(source, destination, size // 16 * 2, tl.int64, 16, most // 8)
        if whole < size:
            _move_words(source + whole, destination + whole, size - whole, tl.uint8, 1, 16)
    elif both % 4 == 0:
        whole = size // 4 * 4
        _move_words(source, destination, size // 4, tl.int32, 4, most // 4)
        if whole < size:
            _move_words(source + whole, destination + whole, size - whole, tl.uint8, 1, 4)
    else:
        for at in range(0, size, BYTES_AT_ONCE):
            left = size - at
            _move_words(source + at, destination + at, left, tl.uint8, 1, BYTES_AT_ONCE)


@triton.jit
def _tile(tiles, index):
    """Where the tile is in block 0, from there to the next block, in a row, and its bytes."""
    field = tiles + index * 4
    return tl.load(field), tl.load(field + 1), tl.load(field + 2), tl.load(field + 3)


@triton.jit
def _block_and_row(moves, tiles, move_count, tile_count, part):
    """Where a part of the work lies in its block and in its row, and its bytes."""
    move = part // tile_count
    address, stride, row_offset, size = _tile(tiles, part % tile_count)
    block = address + tl.load(moves + move) * stride
    row = tl.load(moves + move_count + move) + row_offset
    return block, row, size


@triton.jit(do_not_specialize=["move_count", "tile_count"])
def gather(moves, tiles, move_count: tl.int64, tile_count: tl.int64, tile_bytes: tl.constexpr):
    """Copy blocks into rows. ``moves``: the blocks, then the address of each one's row."""
    for part in range(tl.program_id(0).to(tl.int64), move_count * tile_count, tl.num_programs(0)):
        block, row, size = _block_and_row(moves, tiles, move_count, tile_count, part)
        _move(block, row, size, tile_bytes)


@triton.jit(do_not_specialize=["move_count", "tile_count"])
def scatter(moves, tiles, move_count: tl.int64, tile_count: tl.int64, tile_bytes: tl.constexpr):
    """Copy rows into blocks. ``moves``: as for gather."""
    for part in range(tl.program_id(0).to(tl.int64), move_count * tile_count, tl.num_programs(0)):
        block, row, size = _block_and_row(moves, tiles, move_count, tile_count, part)
        _move(row, block, size, tile_bytes)


@triton.jit(do_not_specialize=["move_count", "tile_count"])
def copy(moves, tiles, move_count: tl.int64, tile_count: tl.int64, tile_bytes: tl.constexpr):
    """Copy blocks into blocks. ``moves``: the sources, then the target of each."""
    for part in range(tl.program_id(0).to(tl.int64), move_count * tile_count, tl.num_programs(0)):
        move = part // tile_count
        address, stride, _, size = _tile(tiles, part % tile_count)
        source = address + tl.load(moves + move) * stride
        target = address + tl.load(moves + move_count + move) * stride
        _move(source, target, size, tile_bytes)


@triton.jit
def _round(z, multiplier: tl.constexpr):
    product = (z & 0xFFFFFFFF) * multiplier
    return (product << 32) | ((product >> 32) ^ (z >> 32))


@triton.jit
def _mix(word, number):
    """As csrc/digest/digest.h has it; both are 64 bits without a sign."""
    z = word ^ ((number + 1) * 0x9E3779B97F4A7C15)
    z = _round(z, 0xD2511F53)
    z = _round(z, 0xCD9E8D57)
    z = _round(z, 0x9E3779B1)
    return _round(z, 0x85EBCA77)


@triton.jit
def _words_at(address, at, inside, alignment: tl.constexpr):
    """The words of those numbers, counted from an address of that alignment."""
    if alignment == 16:
        words = tl.multiple_of(address.to(tl.pointer_type(tl.uint64)), 16)
        found = tl.load(words + at, mask=inside, other=0)
    elif alignment == 4:
        halves = address.to(tl.pointer_type(tl.uint32)) + at * 2
        low = tl.load(halves, mask=inside, other=0).to(tl.uint64)
        high = tl.load(halves + 1, mask=inside, other=0).to(tl.uint64)
        found = high << 32 | low
    else:
        first = address.to(tl.pointer_type(tl.uint8)) + at * 8
        found = tl.load(first, mask=inside, other=0).to(tl.uint64)
        for byte in tl.static_range(1, 8):
            found |= tl.load(first + byte, mask=inside, other=0).to(tl.uint64) << (8 * byte)
    return found


@triton.jit
def _sums_of_words(
    address, words, first_word, part, parts, alignment: tl.constexpr, most: tl.constexpr
):
    """What this part's share of the words adds to the digest, in ``most`` sums."""
    sums = tl.zeros([most], tl.uint64)
    for begin in range(part * most, words, parts * most):
        at = begin + tl.arange(0, most)
        inside = at < words
        word = _words_at(address, at, inside, alignment)
        sums += tl.where(inside, _mix(word, (first_word + at).to(tl.uint64)), 0)
    return sums


@triton.jit
def _sums_of_rest(address, size, begin, first_word):
    """What the last bytes add, at most 15 from word ``begin`` on: a word, and a part of one."""
    at = begin + tl.arange(0, 2)
    left = size - at * 8
    word = tl.zeros([2], tl.uint64)
    first = address.to(tl.pointer_type(tl.uint8)) + at * 8
    for byte in tl.static_range(8):
        word |= tl.load(first + byte, mask=byte < left, other=0).to(tl.uint64) << (8 * byte)
    is_part = left < 8
    word |= tl.where(is_part, left.to(tl.uint64) << 56, 0)
    number = first_word + at
    number = tl.where(is_part, -1 - number, number).to(tl.uint64)
    return tl.where(left > 0, _mix(word, number), 0)


@triton.jit(do_not_specialize=["parts"])
def digest(runs, digests, parts: tl.int64, words_at_once: tl.constexpr):
    """Add up the digests of runs of bytes. ``runs``: of each the address, bytes and first word.

    ``parts`` programs share a run. ``digests`` begins as zeros.
    """
    program = tl.program_id(0).to(tl.int64)
    part = program % parts
    run = runs + program // parts * 3
    address = tl.load(run)
    size = tl.load(run + 1)
    first_word = tl.load(run + 2)
    # An even number, so that Triton sees that the mask is equal for both words of 16 bytes.
    words = size // 16 * 2
    if address % 16 == 0:
        sums = _sums_of_words(address, words, first_word, part, parts, 16, words_at_once)
    elif address % 4 == 0:
        sums = _sums_of_words(address, words, first_word, part, parts, 4, words_at_once)
    else:
        sums = _sums_of_words(address, words, first_word, part, parts, 1, words_at_once)
    sum_of_part = tl.sum(sums, 0)
    if part == 0:
        sum_of_part += tl.sum(_sums_of_rest(address, size, words, first_word), 0)
    tl.atomic_add(digests + program // parts, sum_of_part.to(tl.int64), sem="relaxed")
