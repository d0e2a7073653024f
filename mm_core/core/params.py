"""`params.yaml` as typed models. It holds only values that change results; unknown keys are refused.

`mm params` prints each field's docstring as its documentation. The sections are in the order of params.yaml, in one
long file. Invalid combinations raise an error on construction.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mm_core.core.categories import ALL_CATEGORIES
from mm_core.core.errors import ParamsError
from mm_core.core.params_file import explain, read_yaml
from mm_core.core.params_gate import GateParams
from mm_core.core.params_gate import Section as _Section
from mm_core.core.records import digest_of

if TYPE_CHECKING:
    CategoryOrUnknown = str
else:
    # Pydantic refuses other names, and docs/parameters.md lists these.
    CategoryOrUnknown = Literal[*ALL_CATEGORIES, "unknown"]


class SuspectParams(_Section):
    """Thresholds that hold a matte back for review (`mm_core.ingest.matte_quality` defines the measures)."""

    inversion: float = Field(default=0.0, ge=-1, le=1)
    """Suspect above: the frame's rim is foreground and its centre is background."""
    holes: float = Field(default=0.005, ge=0, le=1)
    """Suspect above, per foreground area: holes that the photo does not show."""
    specks: float = Field(default=0.003, ge=0, le=1)
    """Suspect above, per foreground area: islands that the photo does not show."""
    edge_width: float = Field(default=0.04, gt=0)
    """Suspect above, per long side: even the sharpest part of the edge is blurred."""
    plateau: float = Field(default=0.15, gt=0, le=1)
    """Suspect above, share of the picture: one value between 0 and 1 covers an area so large that the file may be a
    trimap."""
    edge_match: float = Field(default=0.7, le=1)
    """Suspect below: the photo's edges do not coincide with the matte's edge."""
    edge_contrast: float = Field(default=2.5)
    """Suspect below, in standard deviations: the photo has no edge at the matte's edge."""
    way_up: float = Field(default=1.0, ge=0)
    """Suspect below, in standard deviations: for a rotated photo, both orientations of the matte fit its edges
    equally well."""
    least_foreground: float = Field(default=0.001, ge=0, lt=1)
    """Suspect below, share of the picture: almost no foreground."""
    most_foreground: float = Field(default=0.995, gt=0, le=1)
    """Suspect above, share of the picture: almost no background."""
    range: float = Field(default=0.1, ge=0, lt=0.5)
    """The smallest value must be at most this, and the largest at least 1 minus this."""
    max_share: float = Field(default=0.5, ge=0, le=1)
    """A drop with a larger share of suspect mattes is held back as a whole."""


class IngestParams(_Section):
    # Limits that protect the decoder.
    min_side: int = Field(default=32, ge=8)
    """Photos with a shorter side, in pixels, are refused."""
    max_pixels: int = Field(default=120_000_000, gt=0, le=178_956_970)
    """Photos that claim more pixels are refused before they are decoded; the upper limit is Pillow's own."""
    max_bytes: int = Field(default=256 << 20, gt=0)
    """Photos and mattes with more bytes are refused before they are read; on S3 before they are fetched."""
    # Decisions about rows and whole drops.
    near_duplicate_bits: int = Field(default=3, ge=0, le=12)
    """Two photos are candidates for near-duplicates if their 64-bit perceptual hashes differ in at most this many
    bits."""
    max_reject_share: float = Field(default=0.7, ge=0, le=1)
    """A drop with a larger share of bad rows is held back as a whole; suspect mattes are not counted."""
    suspect: SuspectParams = SuspectParams()


class StructureParams(_Section):
    tags: int = Field(default=5, ge=1, le=1000)
    """ImageNet classes kept per photo, the most probable first."""
    classifier: str = "tf_efficientnet_lite0"
    """timm model with packaged ImageNet weights. It tags photos, and it embeds them if `clip` names no pretrained
    weights. Empty: no tags, and classical vectors of colours, layout and edges."""
    tag_templates: Literal["simple", "openai"] = "simple"
    """Sentence templates for class names: 7 or 80. Each CLIP encodes 7,000 or 80,000 texts, once."""
    aesthetic_head: str = ""
    """A file with LAION's linear aesthetic head for the CLIP that `clip` names (safetensors or a state dict)."""
    ocr: tuple[CategoryOrUnknown, ...] = ("cards",)
    """Categories of photos to run text recognition on; it is the slowest extractor (benchmarks/structuring.md)."""
    guess_confidence: float = Field(default=0.8, ge=0, le=1)
    """Least confidence of a guessed category; guesses below it are withheld."""


class DriftParams(_Section):
    """Thresholds for a drift warning about a batch; a warning never blocks."""

    min_photos: int = Field(default=20, ge=5)
    """Least number of scenes in the batch and in the catalog; fewer gives the result `too few`."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance of a false alarm per batch; Holm's correction covers all statistics of a batch."""
    effect: float = Field(default=0.25, ge=0, lt=1)
    """Least relevant Kolmogorov-Smirnov distance of a feature, or total variation of the category mix; in [0, 1]."""
    embedding_effect: float = Field(default=0.02, ge=0, lt=1)
    """Least relevant energy distance of the embeddings, as a share of their mean distance (0 same, 1 apart)."""


class SnapshotParams(_Section):
    eval_share: float = Field(default=0.2, gt=0, lt=0.9)
    """Share of labelled groups in the frozen evaluation set, chosen by a stable hash of the group."""
    eval_least: int = Field(default=8, ge=0)
    """Evaluation groups that each category gets first while labels are few: at least `gate.min_images`, and at most
    two fifths of the category's groups. Only newly arrived groups join the set."""
    eval_most: int = Field(default=1000, ge=0)
    """Most photos of each category that a cycle evaluates, whole groups by a stable hash; 0: all. The other evaluation
    photos are in no pool. `mm gate simulate` tells how many photos a verdict needs."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.9)
    """Share of the remaining labelled groups that select checkpoints during training. A category with fewer than 8
    such photos has no validation set; its photos are trained on."""
    near_duplicate_bits: int = Field(default=3, ge=0, le=12)
    """Groups stay on one side of the evaluation split if perceptual hashes of their photos differ in at most this many
    bits."""


class SplitParams(_Section):
    hard_share: float = Field(default=0.11, gt=0, lt=1)
    """Share of labelled samples, by difficulty, that forms the hard set of each category: about 1 of 9, as in the paper
    (160k simple, 20k hard)."""
    min_hard: int = Field(default=64, ge=0)
    """Least number of hard photos for a separate hard stage; fewer are learned together with the simple ones. A stage
    on 17 photos never improved on its start."""


class ModelParams(_Section):
    encoder: str = "tf_efficientnet_lite0"
    """A timm model name (used with features_only), `u2net` or `u2netp`."""
    pretrained: str = "packaged"
    """Initial weights: `packaged` (ImageNet weights from an installed package: `tf_efficientnet_lite0`, and lite1 and
    lite2 if their packages are installed), `timm` (the hub's default for the encoder), a local file, or empty for
    random weights."""
    size: int = Field(default=288, ge=32, le=2048, multiple_of=32)
    """Side of the square input in pixels."""
    width: int = Field(default=32, ge=4)
    """Channels of the light decoders."""


class StageParams(_Section):
    steps: int = Field(default=900, ge=0)
    """Optimiser steps."""
    lr: float = Field(default=2.5e-3, gt=0)
    """Peak learning rate (AdamW, one-cycle cosine with 5 % warm-up)."""


class CommonTrainParams(_Section):
    # Batches and number format.
    batch: int = Field(default=8, ge=2)
    """Samples per step and pool over all processes; large GPUs need 64 or more each (benchmarks/training_gpu.md)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the forward pass: bfloat16 mixed precision, or float32. `auto` uses bfloat16 if the CPU or GPU
    computes in it, and reports the choice."""
    # Optimiser.
    encoder_lr: float = Field(default=0.2, ge=0)
    """Learning rate of a pretrained encoder as a multiple of the stage's rate."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of AdamW."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of the weights, which is saved; 0 saves the last weights."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Limit of the gradient norm."""
    # Choice of the checkpoint.
    validate_every: int = Field(default=100, ge=1)
    """Steps between two evaluations on the validation set; the best weights are kept."""
    validation_photos: int = Field(default=256, ge=0)
    """Most photos of each category for these evaluations, whole groups by a stable hash; 0: all. Memory holds them."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a gain before a stage stops early; 0 disables it. Most of the error falls with the learning
    rate near the end. A stage that starts from a champion often beats it only in the last quarter."""
    # Start weights and data.
    replay_share: float = Field(default=0.5, ge=0, le=1)
    """Share of each hard-stage batch that is drawn from the simple set, against forgetting."""
    warm_start: Literal["champion", "scratch"] = "champion"
    """`champion`: the first stage starts from the champion or, before the first promotion, from the last candidate that
    was better than the blind matte. `scratch`: every cycle starts from `model.pretrained`."""


class SimpleParams(StageParams):
    photos: int = Field(default=400, ge=1)
    """Number of simple photos that `steps` is meant for. With more, the steps grow in proportion, so that each photo is
    drawn as often (decision 0052)."""
    max_growth: float = Field(default=3.0, ge=1)
    """Limit of this growth; 1 keeps `steps` for any number of photos."""
    shared_decoder: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps in which one decoder learns from all photos and the others copy it. It applies only to fresh
    decoders, without a champion. Afterwards each decoder learns from its own categories."""

    def with_steps_for(self, photos: int) -> Self:
        """Return a copy whose `steps` are those for this number of simple photos."""
        growth = min(max(1.0, photos / self.photos), self.max_growth)
        return self.model_copy(update={"steps": round(self.steps * growth)})


class HardParams(StageParams):
    steps: int = Field(default=300, ge=0)
    lr: float = Field(default=1e-3, gt=0)


class SemiParams(StageParams):
    steps: int = Field(default=0, ge=0)
    """0 (the default) passes the start weights on: short semi-supervised stages lost 4 to 6 % on real photos (decision
    0048). With many unlabelled photos, compare 120 steps or more at a rate of 1e-3 with as many supervised ones."""
    lr: float = Field(default=5e-4, gt=0)
    weight: float = Field(default=1.0, ge=0)
    """Weight of the consistency loss (Ouali et al. 2020 use 30 for 21 classes)."""
    ramp_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps over which the encoder's part of the gradient rises as exp(-5 (1 - t)^2)."""
    # Perturbation names follow Ouali et al. 2020 (cross-consistency training).
    perturbations: tuple[
        Literal["vat", "dropout", "guided_cutout", "context_mask", "object_mask", "feature_drop", "feature_noise"], ...
    ] = ("vat", "dropout", "guided_cutout", "context_mask", "object_mask", "feature_drop", "feature_noise")
    """Perturbations of the features; each has one auxiliary decoder."""
    # Pseudo-labels.
    teacher: str = ""
    """File of a model that labels unlabelled photos for this stage: an ONNX matting model, or a model file of this
    project, such as a larger one of another workspace. Empty: none. With a teacher, `perturbations: []` leaves
    cross-consistency out."""
    teacher_weight: float = Field(default=1.0, ge=0)
    """Weight of the supervised terms on these mattes."""
    teacher_categories: tuple[CategoryOrUnknown, ...] = ()
    """Categories whose photos the teacher labels; empty: all. Name those in which it is better than your model."""
    teacher_size: int = Field(default=320, ge=32, le=4096)
    """Side of the teacher's square input in pixels, if the file leaves it open."""
    teacher_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1] that the teacher expects to be subtracted; ImageNet's by default."""
    teacher_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviations that the teacher expects the colours to be divided by."""


class MultimodalParams(StageParams):
    steps: int = Field(default=50, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    # Off by default: on real photos the terms on text gained nothing (benchmarks/real_photos.md).
    consistency: float = Field(default=0.0, ge=0)
    """Weight of the consistency term: the image-only matte must match the text-image matte. With all three weights of
    text at 0 (the default) the stage passes its start weights on; the paper's terms are at 1, 0.1 and 0.5."""
    contrastive: float = Field(default=0.0, ge=0)
    """Weight of the text-aware contrastive loss."""
    temperature: float = Field(default=0.1, gt=0)
    """InfoNCE temperature."""
    semi: float = Field(default=1.0, ge=0)
    """Weight of the semi-supervised term, kept on in this stage."""
    captioned: float = Field(default=0.0, ge=0)
    """Weight of the supervised terms on labelled photos with their text; they train the fusion of text."""


class LossParams(_Section):
    """Weights of the supervised terms (`mm_core.training.losses`); 0 disables a term."""

    # Terms over the whole image.
    bce: float = Field(default=1.0, ge=0)
    """Binary cross-entropy against the soft matte."""
    l1: float = Field(default=1.0, ge=0)
    """Absolute error over the whole image."""
    iou: float = Field(default=1.0, ge=0)
    """Soft intersection over union: small subjects count as much as large ones."""
    # Terms on edges and detail.
    band: float = Field(default=0.5, ge=0)
    """Absolute error over the unknown band."""
    laplacian: float = Field(default=0.5, ge=0)
    """Laplacian pyramid, five levels."""
    gradient: float = Field(default=1.0, ge=0)
    """Sobel gradients."""
    # Auxiliary outputs.
    deep: float = Field(default=0.3, ge=0)
    """Weight of each deep-supervision output (U2-Net: 1)."""
    choice: float = Field(default=0.1, ge=0)
    """Choice of a decoder for photos of unknown category; its gradient reaches only the chooser."""


class TrainParams(_Section):
    common: CommonTrainParams = CommonTrainParams()
    loss: LossParams = LossParams()
    simple: SimpleParams = SimpleParams()
    hard: HardParams = HardParams()
    semi: SemiParams = SemiParams()
    multimodal: MultimodalParams = MultimodalParams()


class ClipParams(_Section):
    model: str = "local"
    """An open_clip architecture name, or `local`: a small CLIP trained on the available text-image samples."""
    pretrained: str = ""
    """An open_clip tag or a local weights file; empty only with model `local`."""
    steps: int = Field(default=200, ge=0)
    """Training steps of the `local` CLIP."""

    @model_validator(mode="after")
    def _weights_named(self) -> ClipParams:
        if (self.model == "local") == bool(self.pretrained):
            raise ValueError("name `pretrained` weights with an open_clip model, and none with `local`")
        return self


class EvaluateParams(_Section):
    max_side: int = Field(default=1024, ge=32)
    """Mattes are compared at the photo's own size, limited to this many pixels on the long side."""
    shadow_photos: int = Field(default=48, ge=0)
    """Number of newest unlabelled photos on which the int8 candidate is compared with the champion."""


class LimitParams(_Section):
    """Hard limits of released files, independent of the gate; measured at export on the exporting machine."""

    # All files.
    max_bytes: int = Field(default=16_000_000, ge=1)
    """Bytes of the file of one decoder in one format."""
    max_latency_ratio: float = Field(default=1.5, gt=0)
    """Processor time per image relative to torch's eager float network, both on one thread. On an idle machine this is
    the ratio of the latencies; processor time can also be measured on a busy one."""
    max_peak_mb: float = Field(default=1500.0, gt=0)
    """Peak memory in MB (1e6 bytes) of the fresh process that runs the file, with Python and the runtime (ExecuTorch's
    binding loads torch)."""
    # Only formats other than ONNX.
    max_diff_mse: float = Field(default=1e-3, gt=0)
    """Largest mean squared difference from float mattes for formats that the gate does not judge."""


class ExportParams(_Section):
    calibration_images: int = Field(default=32, ge=1)
    """Training photos per decoder that set the ranges of activations and correct what int8 does."""
    max_int8_mse: float = Field(default=5e-4, ge=0)
    """Largest mean squared difference of int8 mattes from float ones, in the worst category, on the calibration photos.
    Above it, the first convolutions stay in float, in every format."""
    formats: list[Literal["onnx", "executorch", "litert"]] = ["onnx"]
    """Formats in the bundle. The gate judges ONNX, so it is required; executorch and litert need `make formats` and
    take minutes."""
    limits: LimitParams = LimitParams()

    @model_validator(mode="after")
    def _formats_are_a_set_with_onnx(self) -> ExportParams:
        if "onnx" not in self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError("formats: name onnx, which the gate judges, and each further one once")
        return self


class RouteParams(_Section):
    # New labels.
    budget: int = Field(default=24, ge=0)
    """Photos sent to people per run for a training label."""
    per_day: int = Field(default=96, ge=0)
    """Photos sent per day (UTC), over all runs."""
    per_category: int = Field(default=32, ge=0)
    """Photos sent per day and category; photos of unknown category form one more category."""
    look: int = Field(default=480, ge=1)
    """Photos that the champion scores per run; the cost of a run is independent of the catalog's size."""
    # Reviews of existing labels.
    suspects: int = Field(default=8, ge=0)
    """Suspect mattes sent for review per run, oldest first."""
    eval_reviews: int = Field(default=4, ge=0)
    """Evaluation photos per run with labels sent for review, the least credible first."""
    eval_doubt: float = Field(default=4.0, gt=1)
    """An evaluation label is doubted if the error of every model is at least this many times its usual error in the
    category."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the sample that the champion scores, and of the order among ties."""
    # Initial mattes before there is a champion.
    starter: str = ""
    """ONNX model that draws initial mattes before there is a champion; empty: the last cycle's candidate."""
    starter_size: int = Field(default=320, ge=32, le=4096)
    """Side of that model's square input in pixels, if the file leaves it open."""
    starter_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1] that the model expects to be subtracted; ImageNet's by default."""
    starter_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviations that the model expects the colours to be divided by."""


class LabelParams(_Section):
    # Agreement between people.
    people: int = Field(default=1, ge=1, le=9)
    """Number of people who label each photo in Label Studio before the task is finished."""
    most_people: int = Field(default=3, ge=2, le=9)
    """Largest number of people per photo if their mattes disagree; after that an expert decides."""
    agree_mse: float = Field(default=0.01, ge=0, le=1)
    """Two mattes agree up to this mean squared difference; their mean becomes the label."""
    agree_iou: float = Field(default=0.9, ge=0, le=1)
    """Two mattes agree from this overlap on; the MSE is too small to compare mattes of small subjects."""
    # Comparison of routed and random labels.
    compare_seeds: int = Field(default=0, ge=0, le=9)
    """Seeds of the comparison in each cycle: trainings on routed and on random new photos (`mm label compare`). It is
    off at 0; from 2 on the spread is measured too."""
    compare_share: float = Field(default=0.25, gt=0, le=1)
    """Largest total of these trainings' steps as a share of the cycle's own steps; scoring their models on the
    evaluation photos is not included."""


PER_ARRIVAL = ("ingest", "structure", "drift", "route", "label")
"""Sections that do not influence a cycle's model."""


class MomentsParams(_Section):
    """Settings for turning a gallery into moments (`mm moments`)."""

    # Grouping of photos into events.
    gap_hours: float = Field(default=3.0, gt=0, le=48)
    """Largest time gap between direct neighbours of one event; photos farther apart need others between them."""
    radius_km: float = Field(default=1.5, gt=0, le=200)
    """Largest distance between the places of direct neighbours, in kilometres."""
    speed_kmh: float = Field(default=15.0, ge=0, le=300)
    """Extra distance per hour for consecutive photos of one camera; it keeps a trip together as one event."""
    # Choice and number of photos.
    least: int = Field(default=2, ge=1)
    """Least number of different photos in a moment; smaller events are skipped."""
    best: int = Field(default=6, ge=1, le=50)
    """Photos shown per moment."""
    inpainting: str = ""
    """TorchScript file of a learned inpainting model with LaMa's interface; empty: the eraser copies patches of the
    photo."""


class Params(_Section):
    """All of `params.yaml`."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of weight initialisation, batch order and augmentation."""
    # Arrival of photos.
    ingest: IngestParams = IngestParams()
    structure: StructureParams = StructureParams()
    drift: DriftParams = DriftParams()
    # Data of a cycle.
    snapshot: SnapshotParams = SnapshotParams()
    split: SplitParams = SplitParams()
    # Labelling by people.
    route: RouteParams = RouteParams()
    label: LabelParams = LabelParams()
    # Training.
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    clip: ClipParams = ClipParams()
    # Evaluation and release.
    evaluate: EvaluateParams = EvaluateParams()
    gate: GateParams = GateParams()
    export: ExportParams = ExportParams()
    # The gallery.
    moments: MomentsParams = MomentsParams()

    @model_validator(mode="after")
    def _eval_is_filled_up_to_what_the_gate_needs(self) -> Params:
        if self.snapshot.eval_least < self.gate.min_images:
            raise ValueError(
                f"snapshot.eval_least is {self.snapshot.eval_least}, gate.min_images {self.gate.min_images}: "
                "raise snapshot.eval_least to it, or no verdict can be reached"
            )
        return self

    @staticmethod
    def load(path: Path) -> Params:
        """Read `params.yaml`; raise ParamsError that names file, field and remedy."""
        try:
            return Params.model_validate(read_yaml(path) or {})
        except ValidationError as error:
            raise ParamsError(f"{path}: {explain(error, Params)}") from None

    def with_values(self, **dotted: object) -> Params:
        """Return a changed copy: `with_values(**{"train.simple.steps": 10})`."""
        data = self.model_dump()
        for name, value in dotted.items():
            # Walk down to the section that holds the value.
            *folders, last = name.split(".")
            node = data
            for folder in folders:
                node = node[folder]
            node[last] = value
        # Validation runs again, so an invalid value raises here.
        return Params.model_validate(data)

    def to_yaml(self) -> str:
        """Return all values in the form of `params.yaml`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)

    def cycle_digest(self) -> str:
        """Return the digest of all values that a cycle depends on, without the sections of PER_ARRIVAL."""
        return digest_of(self.model_dump(mode="json", exclude=set(PER_ARRIVAL)))
