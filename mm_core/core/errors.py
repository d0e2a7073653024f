"""All errors that the system raises on purpose.

MattingError
├── InputError          input from a person or producer is wrong: names the file, the field and the remedy (exit 2)
│   ├── ParamsError     params.yaml
│   ├── DropError       a drop that cannot be read at all (a bad row is quarantined, not raised)
│   └── UnreadableImage a file that is not an image, is broken, or has too many pixels (`imaging/images.py`)
├── StoreError          blobs or inbox could not be read or written
│   ├── BlobNotFound
│   ├── BlobDamaged
│   └── BlobTooLarge    more bytes than the caller takes
├── LabelServerError    Label Studio does not answer, or refuses the key or a request
├── TrackingServerError MLflow's server does not answer, or is none
├── CatalogError        a table is missing, has an unknown version, or lost too many commit races
├── NothingToTrainOn    the snapshot has no usable samples for a stage
├── NonFiniteLoss       a loss became NaN or infinite; names the samples of the batch
└── ReleaseRefused      export or promotion requested without a recorded PROMOTE for that model
"""

from __future__ import annotations


class MattingError(Exception):
    """Base class; the text is one line that a person can act on."""


class InputError(MattingError):
    """Bad input from outside; the text names the file, the field and the remedy."""


class ParamsError(InputError):
    """params.yaml is missing, malformed, or holds an invalid value."""


class DropError(InputError):
    """A whole drop cannot be read: no manifest, not a table, no `image` column, or an absurd size."""


class StoreError(MattingError):
    """A blob or an inbox file could not be read or written after retries."""


class DropMoved(StoreError):
    """A drop left the inbox or changed while it was read."""


class BlobNotFound(StoreError):
    """The store holds nothing under that key."""


class BlobDamaged(StoreError):
    """The stored bytes do not match their digest and must not be used."""


class BlobTooLarge(StoreError):
    """An object has more bytes than the caller accepts; none of them were read."""

    def __init__(self, text: str, size: int) -> None:
        super().__init__(text)
        self.size = size


class LabelServerError(MattingError):
    """Label Studio does not answer, or refuses the key or a request; the text names the cause and the check to make."""


class TrackingServerError(MattingError):
    """MLflow's server does not answer, or another server answers; the text names the address and the check to make."""


class CatalogError(MattingError):
    """A catalog table cannot be read or committed to."""


class NothingToTrainOn(MattingError):
    """A training stage found no samples; the text names the empty pool and the kind of data to drop."""


class NonFiniteLoss(MattingError):
    """Training stopped on a NaN or infinite loss; the text lists the sample ids of that batch."""


class ReleaseRefused(MattingError):
    """Export or promotion was requested for a model without a recorded PROMOTE verdict."""
