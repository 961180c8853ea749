"""Images in the page: PNG files as data URIs."""

import base64
import math
import struct
import zlib

import numpy as np

MAX_SIDE = 32  # pixels; larger images are shrunk

# Blue, white and red, from -max to max; 255 colours, so that 0 has one of its own.
_BLUE, _WHITE, _RED = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]])
_POSITIONS = np.linspace(0, 1, 128)[:, None]
_DIVERGING = np.concatenate(
    [
        _BLUE + (_WHITE - _BLUE) * _POSITIONS,
        (_WHITE + (_RED - _WHITE) * _POSITIONS)[1:],
    ]
).astype(np.uint8)


def grey(image: np.ndarray, low: float, high: float) -> str:
    """An image `[h, w]` in grey, black at `low` and white at `high`."""
    scaled = (_shrink(image) - low) / ((high - low) or 1.0)
    return _data_uri(np.clip(255 * scaled, 0, 255).astype(np.uint8), None)


def diverging(image: np.ndarray) -> str:
    """Weights `[h, w]`, blue below 0 and red above, scaled by their largest |w|."""
    image = _shrink(image)
    scaled = image / (np.abs(image).max(initial=0.0) or 1.0)
    return _data_uri(np.rint(127 + 127 * scaled).astype(np.uint8), _DIVERGING)


def _shrink(image: np.ndarray) -> np.ndarray:
    """The means of blocks of pixels, so that no side is longer than MAX_SIDE."""
    image = np.nan_to_num(np.asarray(image, np.float64))  # of a diverged run
    factor = math.ceil(max(image.shape) / MAX_SIDE)
    if factor == 1:
        return image
    edges = [np.arange(0, side, factor) for side in image.shape]
    sums = np.add.reduceat(np.add.reduceat(image, edges[0], 0), edges[1], 1)
    sizes = [
        np.diff([*edge, side]) for edge, side in zip(edges, image.shape, strict=True)
    ]
    return sums / np.outer(*sizes)


def _data_uri(pixels: np.ndarray, palette: np.ndarray | None) -> str:
    """Pixels `[h, w]` of 8 bits, grey levels or indices into a palette `[n, 3]`."""
    height, width = pixels.shape
    kind = 0 if palette is None else 3
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each begins with filter 0
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    if palette is not None:
        chunks.insert(1, (b"PLTE", palette.tobytes()))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    )
