"""Decode galaxies into the store that `gzpaper train` uses: `python cluster/decode.py DATA OUT SIZE FIELD`."""
import sys
from pathlib import Path

from gzpaper.data import KaggleFolder
from gzpaper.images import pixel_store
from gzpaper.loader import store_side
from gzpaper.tree import InputError

data, out, size, field = sys.argv[1:]
try:
    side = store_side(int(size), float(field))
    images = KaggleFolder(data).join()[0]
    pixel_store(images, Path(out) / f"store-{side}", side)
except InputError as error:
    sys.exit(f"gzpaper: {error}")
