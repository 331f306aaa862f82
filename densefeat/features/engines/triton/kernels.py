"""Triton kernels over maps that lie as rows: one pixel a row, its channels side by side, rows ``stride`` values apart.

Rows are padded to a multiple of 16 values, so that reads stay aligned and wide: values beyond a map's channels are read and
replaced by zero (RAGGED), not masked. Weights lie as ``(taps, channels, outputs)``, the latter two padded with zeros to a
multiple of 16. Sums are float32. Their order depends on BLOCK_K alone: no other block size changes a bit of a result.
"""

import triton
import triton.language as tl

_SIZES = (  # Triton would compile other kernels where one of these is 1 or a multiple of 16
    "rows", "height", "width", "out_height", "out_width", "inputs", "cell_tiles", "parts", "pixels",
    "image_size", "line_size", "taps",
)  # fmt: skip


@triton.jit
def _relu(x):
    """Replace negative values by 0. NaN stays, as in torch."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


INTERPRETED = tl.constexpr(not isinstance(_relu, triton.JITFunction))  # with TRITON_INTERPRET=1 kernels run on the CPU, slowly


@triton.jit
def _multiply_add(a, b, total, PRECISION: tl.constexpr):
    """Return ``total + a @ b``."""
    if INTERPRETED:  # the interpreter would multiply bfloat16 as if it were integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:  # noqa: RET505  (only the branch that applies may be compiled)
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _round_to(x, dtype: tl.constexpr):
    """Round float32 to the nearest value of ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would truncate
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _weighted_sum(x, inside, k, channels16, scale, shift, input_stride, inputs, MANY: tl.constexpr):
    """Return ``Σ_i scale[i, k] · x_i[row, k] + shift[k]``: if MANY over ``inputs`` maps, ``input_stride`` values apart."""
    in_channels = k < channels16
    mask = inside[:, None] & in_channels[None, :]
    start = tl.load(shift + k, mask=in_channels, other=0.0)[None, :]
    if MANY:
        value = tl.zeros(mask.shape, tl.float32) + start
        for i in tl.range(0, inputs, num_stages=3):
            factor = tl.load(scale + i * channels16 + k, mask=in_channels, other=0.0)[None, :]
            value += tl.load(x, mask=mask, other=0.0).to(tl.float32) * factor
            x += input_stride
    else:
        factor = tl.load(scale + k, mask=in_channels, other=0.0)[None, :]
        value = tl.load(x, mask=mask, other=0.0).to(tl.float32) * factor + start
    return value


@triton.jit
def _load_input(
    x, inside, k, channels, channels16, scale, shift, input_stride, inputs,
    NORM: tl.constexpr, MANY: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Load what a convolution multiplies, in the map's type: the map, or if NORM ReLU of its :func:`_weighted_sum`."""
    if NORM:
        value = _relu(_weighted_sum(x, inside, k, channels16, scale, shift, input_stride, inputs, MANY))
        value = _round_to(value, x.dtype.element_ty)
    else:
        value = tl.load(x, mask=inside[:, None] & (k < channels16)[None, :], other=0.0)
    if RAGGED:
        value = tl.where((k < channels)[None, :], value, 0.0)
    return value


@triton.jit
def _load_filters(weight, k, n, channels16, outputs16):
    """Load a tile of weights: rows ``k`` of one tap, columns ``n``."""
    mask = (k < channels16)[:, None] & (n < outputs16)[None, :]
    return tl.load(weight + k[:, None] * outputs16 + n[None, :], mask=mask, other=0.0)


@triton.jit
def _store_output(total, bias, out, inside, n, outputs, BIAS: tl.constexpr, RELU: tl.constexpr):
    """Store a tile of a convolution's results at the row pointers ``out``."""
    if BIAS:
        total += tl.load(bias + n, mask=n < outputs, other=0.0)[None, :]
    if RELU:
        total = _relu(total)
    tl.store(out[:, None] + n[None, :], _round_to(total, out.dtype.element_ty), mask=inside[:, None] & (n < outputs)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def pointwise(
    x, input_stride, inputs, scale, shift, weight, bias, out, rows, channels, x_stride, outputs, out_stride,
    NORM: tl.constexpr, MANY: tl.constexpr, RAGGED: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve 1×1: a map, ReLU of its norm (NORM), or ReLU of a weighted sum of ``inputs`` maps (NORM and MANY)."""
    channels16, outputs16 = (channels + 15) // 16 * 16, (outputs + 15) // 16 * 16
    tiles = tl.cdiv(outputs, BLOCK_N)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = m.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, channels16, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        pointers = x + row[:, None] * x_stride + k[None, :]
        a = _load_input(pointers, m < rows, k, channels, channels16, scale, shift, input_stride, inputs, NORM, MANY, RAGGED)
        total = _multiply_add(a, _load_filters(weight, k, n, channels16, outputs16), total, PRECISION)
    _store_output(total, bias, out + row * out_stride, m < rows, n, outputs, BIAS, RELU)


@triton.jit(do_not_specialize=_SIZES)
def conv3x3(
    x, scale, shift, weight, bias, out, rows, height, width, channels, x_stride, outputs, out_stride,
    NORM: tl.constexpr, RAGGED: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve 3×3, stride 1, padding 1: a map, or ReLU of its norm (NORM).

    Each row is read three times, for the lines above, here and below, and not nine times: a tile is multiplied by the weights
    of all three columns, and the products of the left and right columns are shifted by one row at the end. A tile's first and
    last row exist only for this shift.
    """
    channels16, outputs16 = (channels + 15) // 16 * 16, (outputs + 15) // 16 * 16
    tiles = tl.cdiv(outputs, BLOCK_N)
    i = tl.arange(0, BLOCK_M)
    m = tl.program_id(0) // tiles * (BLOCK_M - 2) - 1 + i
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = m.to(tl.int64)
    inside = (m >= 0) & (m < rows)
    y, column = m // width % height, m % width
    size = channels16 * outputs16
    blocks = tl.cdiv(channels16, BLOCK_K)
    left = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    middle = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    right = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(3 * blocks):
        line = step // blocks
        k = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = inside & (y + line >= 1) & (y + line <= height)
        pointers = x + (row + (line - 1) * width)[:, None] * x_stride + k[None, :]
        a = _load_input(pointers, mask, k, channels, channels16, scale, shift, 0, 1, NORM, False, RAGGED)
        if NORM:
            a = tl.where(mask[:, None], a, 0.0)
        taps = weight + 3 * line * size
        left = _multiply_add(a, _load_filters(taps, k, n, channels16, outputs16), left, PRECISION)
        middle = _multiply_add(a, _load_filters(taps + size, k, n, channels16, outputs16), middle, PRECISION)
        right = _multiply_add(a, _load_filters(taps + 2 * size, k, n, channels16, outputs16), right, PRECISION)
    left = tl.gather(left, tl.broadcast_to(tl.maximum(i - 1, 0)[:, None], (BLOCK_M, BLOCK_N)), 0)
    right = tl.gather(right, tl.broadcast_to(tl.minimum(i + 1, BLOCK_M - 1)[:, None], (BLOCK_M, BLOCK_N)), 0)
    total = middle + tl.where((column > 0)[:, None], left, 0.0) + tl.where((column < width - 1)[:, None], right, 0.0)
    _store_output(total, bias, out + row * out_stride, inside & (i > 0) & (i < BLOCK_M - 1), n, outputs, BIAS, RELU)


@triton.jit(do_not_specialize=_SIZES)
def conv3x3_stride2(
    x, weight, out, rows, height, width, out_height, out_width, channels, x_stride, outputs, out_stride,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve a map 3×3, stride 2, padding 1, without bias."""
    channels16, outputs16 = (channels + 15) // 16 * 16, (outputs + 15) // 16 * 16
    tiles = tl.cdiv(outputs, BLOCK_N)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    top, left = m // out_width % out_height * 2 - 1, m % out_width * 2 - 1
    corner = (m // (out_width * out_height)).to(tl.int64) * height * width + top * width + left
    blocks = tl.cdiv(channels16, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(9 * blocks):
        tap = step // blocks
        line, column = tap // 3, tap % 3
        k = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        y, z = top + line, left + column
        mask = (m < rows) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        pointers = x + (corner + line * width + column)[:, None] * x_stride + k[None, :]
        a = _load_input(pointers, mask, k, channels, channels16, x, x, 0, 1, False, False, RAGGED)
        taps = weight + tap * channels16 * outputs16
        total = _multiply_add(a, _load_filters(taps, k, n, channels16, outputs16), total, PRECISION)
    _store_output(total, x, out + m.to(tl.int64) * out_stride, m < rows, n, outputs, False, False)


@triton.jit(do_not_specialize=_SIZES)
def stem_conv(
    x, offsets, weight, bias, out, rows, image_size, line_size, out_height, out_width, taps, outputs, out_stride,
    STRIDE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve padded images ``(N, C, H, W)``; ``offsets (taps,)`` lead from a window's first value to each value of it."""
    taps16, outputs16 = (taps + 15) // 16 * 16, (outputs + 15) // 16 * 16
    tiles = tl.cdiv(outputs, BLOCK_N)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    corner = m // out_width % out_height * STRIDE * line_size + m % out_width * STRIDE
    pointers = x + (m // (out_width * out_height)).to(tl.int64) * image_size + corner
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, taps16, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        offset = tl.load(offsets + k, mask=k < taps, other=0)
        a = tl.load(pointers[:, None] + offset[None, :], mask=(m < rows)[:, None] & (k < taps)[None, :], other=0.0)
        total = _multiply_add(a, _load_filters(weight, k, n, taps16, outputs16), total, PRECISION)
    _store_output(total, bias, out + m.to(tl.int64) * out_stride, m < rows, n, outputs, BIAS, RELU)


@triton.jit(do_not_specialize=_SIZES)
def max_pool(
    x, out, rows, height, width, out_height, out_width, channels, x_stride, out_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pool 3×3 maxima, stride 2, padding 1."""
    tiles = tl.cdiv(channels, BLOCK_N)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    top, left = m // out_width % out_height * 2 - 1, m % out_width * 2 - 1
    corner = (m // (out_width * out_height)).to(tl.int64) * height * width + top * width + left
    most = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for tap in tl.static_range(9):
        y, z = top + tap // 3, left + tap % 3
        mask = (m < rows) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        pointers = x + (corner + tap // 3 * width + tap % 3)[:, None] * x_stride + n[None, :]
        value = tl.load(pointers, mask=mask[:, None] & (n < channels)[None, :], other=float("-inf"))
        most = tl.maximum(most, value.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    _store_output(most, x, out + m.to(tl.int64) * out_stride, m < rows, n, channels, False, False)


@triton.jit(do_not_specialize=_SIZES)
def transition(
    x, scale, shift, weight, out, partial, cell_tiles, height, width, channels, x_stride, outputs, out_stride, pixel_share,
    MEAN: tl.constexpr, RAGGED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Apply norm, ReLU, a 2×2 average pool and a 1×1 convolution. An image has ``cell_tiles`` tiles of 2×2 cells.

    The pool drops an odd last line or column, and the mean does not: cells there have fewer pixels and no output. With MEAN
    "norm" or "raw" each tile's share of the mean over the pixels, after or before norm and ReLU, is stored in
    ``partial (images, tiles, channels)``.
    """
    cells_wide, pooled_height, pooled_width = (width + 1) // 2, height // 2, width // 2
    cells = (height + 1) // 2 * cells_wide
    channels16, outputs16 = (channels + 15) // 16 * 16, (outputs + 15) // 16 * 16
    tiles = tl.cdiv(outputs, BLOCK_N)
    tile = tl.program_id(0) // tiles
    image = (tile // cell_tiles).to(tl.int64)
    cell = tile % cell_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % tiles
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    y, z = cell // cells_wide, cell % cells_wide
    corner = image * height * width + 2 * y * width + 2 * z
    sums = partial + tile.to(tl.int64) * channels
    summed = tl.where(column == 0, channels, 0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, channels16, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        in_channels = k < channels16
        factor = tl.load(scale + k, mask=in_channels, other=0.0)[None, :]
        start = tl.load(shift + k, mask=in_channels, other=0.0)[None, :]
        pooled = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        raw = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for part in tl.static_range(4):
            mask = (cell < cells) & (2 * y + part // 2 < height) & (2 * z + part % 2 < width)
            pointers = x + (corner + part // 2 * width + part % 2)[:, None] * x_stride + k[None, :]
            value = tl.load(pointers, mask=mask[:, None] & in_channels[None, :], other=0.0).to(tl.float32)
            pooled += tl.where(mask[:, None], _relu(value * factor + start), 0.0)
            if MEAN == "raw":
                raw += value
        if MEAN == "norm":
            share = tl.sum(pooled, 0) * pixel_share
            tl.store(sums + k, share, mask=k < summed)
        if MEAN == "raw":
            share = tl.sum(raw, 0) * pixel_share
            tl.store(sums + k, share, mask=k < summed)
        a = _round_to(0.25 * pooled, x.dtype.element_ty)
        if RAGGED:
            a = tl.where((k < channels)[None, :], a, 0.0)
        total = _multiply_add(a, _load_filters(weight, k, n, channels16, outputs16), total, PRECISION)
    whole = (y < pooled_height) & (z < pooled_width)
    target = (image * pooled_height + y) * pooled_width + z
    _store_output(total, x, out + target * out_stride, whole, n, outputs, False, False)


@triton.jit(do_not_specialize=_SIZES)
def combine(
    x, input_stride, inputs, scale, shift, maps, partial, parts, pixels, channels, x_stride, maps_stride, pixel_share,
    NORM: tl.constexpr, MANY: tl.constexpr, RELU: tl.constexpr, MAPS: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Compute a map's norm (NORM), the weighted sum of several maps (NORM and MANY), or the map itself.

    The result is stored in ``maps`` (MAPS), its mean over the pixels in ``partial (images, parts, channels)`` (MEAN), or both.
    Each of an image's ``parts`` has STEPS · BLOCK_M pixels.
    """
    channels16 = (channels + 15) // 16 * 16
    tiles = tl.cdiv(channels, BLOCK_N)
    part = tl.program_id(0) // tiles
    image = (part // parts).to(tl.int64)
    k = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        pixel = (part % parts * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = pixel < pixels
        row = image * pixels + pixel
        pointers = x + row[:, None] * x_stride + k[None, :]
        mask = inside[:, None] & (k < channels)[None, :]
        if NORM:
            value = _weighted_sum(pointers, inside, k, channels16, scale, shift, input_stride, inputs, MANY)
        else:
            value = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            value = _relu(value)
        if MAPS:
            tl.store(maps + row[:, None] * maps_stride + k[None, :], _round_to(value, maps.dtype.element_ty), mask=mask)
        if MEAN:
            total += tl.where(inside[:, None], value, 0.0)
    if MEAN:
        sums = partial + part.to(tl.int64) * channels
        tl.store(sums + k, tl.sum(total, 0) * pixel_share, mask=k < channels)


@triton.jit(do_not_specialize=_SIZES)
def add_parts(partial, mean, parts, channels, BLOCK_N: tl.constexpr):
    """Add up ``partial (images, parts, channels)`` in the order of the parts, to ``mean (images, channels)``."""
    tiles = tl.cdiv(channels, BLOCK_N)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    k = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for part in range(parts):
        total += tl.load(partial + (image * parts + part) * channels + k, mask=k < channels, other=0.0)
    tl.store(mean + image * channels + k, total, mask=k < channels)
