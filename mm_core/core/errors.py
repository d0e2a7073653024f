"""Every error that the system raises on purpose.

MattingError
├── InputError          what a person or producer gave is wrong: names the file, the field and the remedy (exit 2)
│   ├── ParamsError     params.yaml
│   ├── DropError       a drop that cannot be read at all (a bad row is quarantined, not raised)
│   └── UnreadableImage a file that is no image, a broken one, or one of too many pixels (`imaging/images.py`)
├── StoreError          blobs or inbox could not be read or written
│   ├── BlobNotFound
│   ├── BlobDamaged
│   └── BlobTooLarge    more bytes than the caller takes
├── LabelServerError    Label Studio does not answer, or refuses the key or a request
├── CatalogError        a table is missing, of an unknown version, or lost a race too often
├── NothingToTrainOn    the snapshot has no usable samples for a stage
├── NonFiniteLoss       a loss became NaN or infinite; names the samples of the batch
└── ReleaseRefused      export or promotion asked for without a recorded PROMOTE for that model
"""

from __future__ import annotations


class MattingError(Exception):
    """Base of all; its text is one line that a person can act on."""


class InputError(MattingError):
    """Bad input from outside; the text names the file, the field and the remedy."""


class ParamsError(InputError):
    """params.yaml is missing, malformed, or holds a value that cannot work."""


class DropError(InputError):
    """A drop as a whole cannot be read: no manifest, not a table, no `image` column, absurd size."""


class StoreError(MattingError):
    """A blob or an inbox file could not be read or written after retries."""


class DropMoved(StoreError):
    """A drop left the inbox, or changed, while it was read."""


class BlobNotFound(StoreError):
    """The store holds nothing under that key."""


class BlobDamaged(StoreError):
    """The bytes that the store holds under a digest are others: nothing may be made of them."""


class BlobTooLarge(StoreError):
    """An object has more bytes than the caller takes; nothing of it was read."""

    def __init__(self, text: str, size: int):
        super().__init__(text)
        self.size = size


class LabelServerError(MattingError):
    """Label Studio does not answer, or refuses the key or a request; the text says which and what to check."""


class CatalogError(MattingError):
    """A catalog table cannot be read or committed to."""


class NothingToTrainOn(MattingError):
    """A training stage found no samples; the text says which pool is empty and what to drop there."""


class NonFiniteLoss(MattingError):
    """Training stopped on a NaN or infinite loss; the text lists the sample ids of that batch."""


class ReleaseRefused(MattingError):
    """Export or promote was asked for a model whose recorded verdict is not PROMOTE."""
