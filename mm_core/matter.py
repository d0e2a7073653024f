"""The Python API: load a released model and predict mattes.

    from mm_core import Matter

    matter = Matter.load("champion")            # or a registry version, a bundle's folder, a .safetensors file
    alpha = matter.predict("holiday.jpg")       # float32 (H, W) in [0, 1], at the photo's own size

`docs/predict.ipynb` is an example notebook.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import ALL_CATEGORIES
from mm_core.core.settings import Settings
from mm_core.export.runtime import OnnxPredictor
from mm_core.imaging.photo_input import Photo, read_photo
from mm_core.model.predict import Predictor, decoders_for
from mm_core.operations import predictor_of


class Matter:
    """A matting model that is ready to predict. `Matter.load` creates one."""

    def __init__(self, predictor: Predictor, name: str):
        self._predictor = predictor
        self.name = name
        """Registry version, name of the bundle's folder, or first digits of the weights' digest."""

    @classmethod
    def load(cls, model: str | PathLike[str] = "champion", workspace: str | PathLike[str] | None = None) -> Matter:
        """Load a model.

        Args:
            model: The folder of a bundle; `champion`, another alias or a version of the registry (its int8 files);
                or a .safetensors file (float, needs torch).
            workspace: Folder of the registry and the store. The default is `MM_WORKSPACE`, then `data`. A bundle's
                folder needs no workspace.

        Raises:
            InputError: The model does not exist.
        """
        # A bundle contains all its files, so no registry is needed.
        if Path(model).is_dir():
            return cls(OnnxPredictor.of_folder(Path(model), guided=True), Path(model).name)
        # A registry version or a weights file needs the settings of a workspace.
        settings = Settings.from_env(None if workspace is None else Path(workspace))
        predictor, name = predictor_of(Layout(settings), str(model))
        if predictor is None:
            raise InputError("Matter.load: name a model; `none` predicts nothing")
        return cls(predictor, name)

    def predict(self, photo: Photo, category: str = "") -> np.ndarray:
        """Return the alpha matte of a photo.

        Args:
            photo: Path of a photo, a Pillow image, or uint8 (H, W, 3) in sRGB. Files and Pillow images are rotated
                by their EXIF orientation.
            category: One of the categories; it selects the decoder. Without it the model selects one.

        Returns:
            float32 (H, W) in [0, 1] at the photo's own size; 1 is the subject.

        Raises:
            InputError: The file is not a photo, the array has another shape or type, or the category is unknown.
        """
        if category and category not in ALL_CATEGORIES:
            raise InputError(f"category {category!r} is unknown; one of {', '.join(ALL_CATEGORIES)}")
        # One photo is a batch of one; the predictor resizes it and refines the matte at full size.
        pixels = read_photo(photo)
        decoders = decoders_for(self._predictor, [pixels], [category])
        return self._predictor.predict([pixels], decoders)[0]
