"""Opening pictures of unknown origin: a few known formats, a limit on the pixels, and one kind of error."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP")  # JPEG includes MPO
PIXEL_LIMIT = 100_000_000  # a larger picture is taken for a decompression bomb
SIDE_LIMIT = 100  # times as long as wide: models resize the shorter side first, which makes a strip a bomb

warnings.filterwarnings("ignore", module="PIL")  # of large pictures and odd metadata; the limit is ours


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in the bytes of a file, its header read and its size checked, its pixels not decoded yet.

    Raises:
        BadPair: none of the formats, more than PIXEL_LIMIT pixels, a side more than SIDE_LIMIT times the other, or damaged,
            also where that shows only in the block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > PIXEL_LIMIT:
                raise Image.DecompressionBombError
            if max(picture.size) > SIDE_LIMIT * min(picture.size):
                raise BadPair(f"the picture is more than {SIDE_LIMIT} times as long as wide")
            yield picture
    except (BadPair, UserError):
        raise
    except Image.DecompressionBombError:
        raise BadPair(f"the picture has more than {PIXEL_LIMIT // 1_000_000} megapixels") from None
    except Exception:  # Pillow's decoders raise nearly anything for damaged data
        raise BadPair("the picture does not decode") from None
