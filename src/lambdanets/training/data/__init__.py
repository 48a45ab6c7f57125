"""Labelled images for training and testing.

A data specification is one word on the command line:

================================= ==================================================================
``digits``                        scikit-learn's 1,797 handwritten digits, 8x8, no download
``fashion-mnist[:DIR]``           the four IDX files of Fashion-MNIST, 28x28, gzipped or not
``imagefolder:DIR`` or ``DIR``    one's own images: a folder a class, split by us or into train/val/test
``READER/NAME[:ROOT]``            what timm's readers take: ``hfds/``, ``torch/``, ``wds/``, ``tfds/``;
                                  class names that they do not tell are read from ``ROOT/classes.txt``
================================= ==================================================================
"""

from lambdanets.training.data.core import ArrayImages, FileImages, ImageData, Part, split_by_class
from lambdanets.training.data.load import load_data, recipe_for_data, resolve_data
from lambdanets.training.data.spec import DataSpec

__all__ = [
    "ArrayImages",
    "DataSpec",
    "FileImages",
    "ImageData",
    "Part",
    "load_data",
    "recipe_for_data",
    "resolve_data",
    "split_by_class",
]
