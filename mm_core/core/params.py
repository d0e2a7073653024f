"""`params.yaml`, typed once. Only values that change results live here; unknown keys are refused.

Every field's docstring is its documentation, and `mm params` prints them: that makes the file long, in one place, and
in the order of params.yaml. Bad combinations fail on construction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from mm_core.core.errors import ParamsError
from mm_core.core.params_file import explain, read_yaml
from mm_core.core.params_gate import GateParams
from mm_core.core.params_gate import Section as _Section
from mm_core.core.records import digest_of


class SuspectParams(_Section):
    """From where a matte is held for review (`mm_core.ingest.matte_quality` defines the measures)."""

    inversion: float = Field(default=0.0, ge=-1, le=1)
    """Above: the frame's rim is foreground and its centre is not."""
    holes: float = Field(default=0.005, ge=0, le=1)
    """Above, per foreground area: holes that the photo does not show."""
    specks: float = Field(default=0.003, ge=0, le=1)
    """Above, per foreground area: islands that the photo does not show."""
    edge_width: float = Field(default=0.04, gt=0)
    """Above, per long side: even the sharpest part of the edge is blurred."""
    plateau: float = Field(default=0.15, gt=0, le=1)
    """Above, share of the picture: one value between 0 and 1 covers so much that the file may be a trimap."""
    edge_match: float = Field(default=0.7, le=1)
    """Below: the photo's edges lie beside the matte's edge."""
    edge_contrast: float = Field(default=2.5)
    """Below, in standard deviations: the photo has no edge where the matte has one."""
    way_up: float = Field(default=1.0, ge=0)
    """Below, in standard deviations: of a turned photo, the matte's two ways agree alike with the photo's edges."""
    least_foreground: float = Field(default=0.001, ge=0, lt=1)
    """Below, share of the picture: hardly any foreground."""
    most_foreground: float = Field(default=0.995, gt=0, le=1)
    """Above, share of the picture: hardly any background."""
    range: float = Field(default=0.1, ge=0, lt=0.5)
    """The smallest value must not lie above this, nor the largest below 1 less this."""
    max_share: float = Field(default=0.5, ge=0, le=1)
    """A drop with a larger share of suspect mattes is held back whole."""


class IngestParams(_Section):
    min_side: int = Field(default=32, ge=8)
    """Photos with a shorter side, in pixels, are refused."""
    max_pixels: int = Field(default=120_000_000, gt=0, le=178_956_970)
    """Photos that claim more pixels are refused before they are decoded; the upper limit is Pillow's own."""
    max_bytes: int = Field(default=256 << 20, gt=0)
    """Files of photos and mattes with more bytes are refused before they are read, on S3 before they are fetched."""
    near_duplicate_bits: int = Field(default=3, ge=0, le=12)
    """Two photos whose 64-bit perceptual hashes differ in at most this many bits are candidates for near-duplicates."""
    max_reject_share: float = Field(default=0.7, ge=0, le=1)
    """A drop with a larger share of bad rows (suspect mattes not counted) is held back whole."""
    suspect: SuspectParams = SuspectParams()


class StructureParams(_Section):
    tags: int = Field(default=5, ge=1, le=1000)
    """ImageNet classes kept per photo, the likeliest first."""
    classifier: str = "tf_efficientnet_lite0"
    """timm model whose packaged ImageNet weights tag photos and give their vectors where `clip` names no pretrained
    weights; empty: no tags, and classical vectors of colours, layout and edges."""
    tag_templates: Literal["simple", "openai"] = "simple"
    """Sentences that a class name is put into: 7 or 80. Encoded once per CLIP: 7,000 or 80,000 texts."""
    aesthetic_head: str = ""
    """A file with LAION's linear aesthetic head for the CLIP that `clip` names (safetensors or a state dict)."""
    ocr: tuple[
        Literal["portrait", "multi_person", "pets", "accessories", "cards", "delicacy", "scenery", "unknown"], ...
    ] = ("cards",)
    """Categories of photos whose text is read: it takes longer than all else (benchmarks/structuring.md)."""
    guess_confidence: float = Field(default=0.8, ge=0, le=1)
    """A guessed category needs this confidence; below it the guess is withheld."""


class DriftParams(_Section):
    """When a batch differs enough from the catalog for a warning (it never blocks)."""

    min_photos: int = Field(default=20, ge=5)
    """Scenes that the batch and the catalog need each; fewer is `too few`."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance of a false alarm per batch: Holm's correction over all statistics of a batch."""
    effect: float = Field(default=0.25, ge=0, lt=1)
    """Kolmogorov-Smirnov distance of a feature, or total variation of the category mix, that matters; in [0, 1]."""
    embedding_effect: float = Field(default=0.02, ge=0, lt=1)
    """Energy distance of the embeddings, as a share of their mean distance (0 same, 1 apart), that matters."""


class SnapshotParams(_Section):
    eval_share: float = Field(default=0.2, gt=0, lt=0.9)
    """Share of labelled groups that become the frozen evaluation set, by stable hash of the group."""
    eval_least: int = Field(default=8, ge=0)
    """Evaluation groups that each category gets first, while there are few labels: at least `gate.min_images`, and up
    to a third of the category's groups. Only arriving groups join."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.9)
    """Share of the remaining labelled groups that choose checkpoints while training. A category for which it gives
    fewer than 8 photos has none: they are trained on."""
    near_duplicate_bits: int = Field(default=3, ge=0, le=12)
    """Groups with photos whose perceptual hashes differ in at most this many bits stay on one side of eval."""


class SplitParams(_Section):
    hard_share: float = Field(default=0.11, gt=0, lt=1)
    """Share of labelled samples, by difficulty, that forms the hard set of each category: about 1 of 9, as in the paper
    (160k simple, 20k hard)."""
    min_hard: int = Field(default=64, ge=0)
    """Hard photos that a stage of their own needs; fewer are learned together with the simple ones. A stage on 17
    photos was never better than its start."""


class ModelParams(_Section):
    encoder: str = "tf_efficientnet_lite0"
    """A timm model name (used with features_only), `u2net` or `u2netp`."""
    pretrained: str = "packaged"
    """Weights to begin with: `packaged` (ImageNet weights that an installed package ships, for
    `tf_efficientnet_lite0`, and for lite1 and lite2 where their package is installed), `timm` (the hub's default for
    the encoder), a local file, or empty for random weights."""
    size: int = Field(default=288, ge=32, le=2048, multiple_of=32)
    """Side of the square input in pixels."""
    width: int = Field(default=32, ge=4)
    """Channels of the light decoders."""


class StageParams(_Section):
    steps: int = Field(default=600, ge=0)
    """Optimiser steps."""
    lr: float = Field(default=2.5e-3, gt=0)
    """Peak learning rate (AdamW, one-cycle cosine with 5 % warm-up)."""


class CommonTrainParams(_Section):
    batch: int = Field(default=8, ge=2)
    """Samples of one step and pool, of all processes; large GPUs want 64 or more each (benchmarks/training_gpu.md)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the forward pass: mixed with bfloat16, or plain float32. `auto` takes bfloat16 where the CPU or
    GPU computes in it, and says which it took."""
    encoder_lr: float = Field(default=0.2, ge=0)
    """Learning rate of a pretrained encoder as a multiple of the stage's own."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of weights that is saved; 0 saves the last weights."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradient norm limit."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two looks at the validation set; the best of them is kept."""
    patience: int = Field(default=0, ge=0)
    """Looks without a gain after which a stage stops early; 0 never does. The rate falls to the end, and with it most
    of the error: a stage that starts from a champion often passes it in its last quarter alone."""
    replay_share: float = Field(default=0.5, ge=0, le=1)
    """Share of each batch of the hard stage drawn from the simple set, against forgetting."""
    warm_start: Literal["champion", "scratch"] = "champion"
    """What the first stage starts from where a champion exists."""


class SimpleParams(StageParams):
    shared_decoder: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps in which one decoder learns from all photos and the others copy it; only where they are
    fresh, without a champion to start from. Later each learns from the photos of its own categories."""


class HardParams(StageParams):
    steps: int = Field(default=300, ge=0)
    lr: float = Field(default=1e-3, gt=0)


class SemiParams(StageParams):
    steps: int = Field(default=50, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    weight: float = Field(default=1.0, ge=0)
    """Weight of the consistency loss (Ouali et al. 2020 use 30 for 21 classes)."""
    view: float = Field(default=0.0, ge=0)
    """Weight of following the teacher's matte on strongly altered photos, unlabelled and captioned ones; 0 leaves the
    paper's term alone."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of the altered photos that get a rectangle of another photo (CutMix; French et al. 2020)."""
    ramp_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps over which what reaches the encoder rises as exp(-5 (1 - t)^2)."""
    perturbations: tuple[
        Literal["vat", "dropout", "guided_cutout", "context_mask", "object_mask", "feature_drop", "feature_noise"], ...
    ] = ("vat", "dropout", "guided_cutout", "context_mask", "object_mask", "feature_drop", "feature_noise")
    """One auxiliary decoder each."""


class MultimodalParams(StageParams):
    steps: int = Field(default=50, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    consistency: float = Field(default=1.0, ge=0)
    """Weight of the consistency between the image-only and the text-image prediction."""
    contrastive: float = Field(default=0.1, ge=0)
    """Weight of the text-aware contrastive loss."""
    temperature: float = Field(default=0.1, gt=0)
    """InfoNCE temperature."""
    semi: float = Field(default=1.0, ge=0)
    """Weight of the semi-supervised term, kept on in this stage."""
    captioned: float = Field(default=0.5, ge=0)
    """Weight of the supervised terms on labelled photos seen with their text: it makes the text worth following."""
    distil: float = Field(default=0.5, ge=0)
    """Weight of reading the CLIP image tower's vector of a photo from the encoder's features."""
    teacher: Literal["text", "image", "both"] = "text"
    """Which prediction the consistency follows: the text-image one (it knows more), the image one, or both."""


class LossParams(_Section):
    """Weights of the supervised terms (`mm_core.training.losses`); 0 leaves a term out."""

    bce: float = Field(default=1.0, ge=0)
    """Binary cross-entropy against the soft matte."""
    l1: float = Field(default=1.0, ge=0)
    """Absolute error over the whole image."""
    iou: float = Field(default=1.0, ge=0)
    """Soft intersection over union: small subjects count as much as large ones."""
    band: float = Field(default=0.5, ge=0)
    """Absolute error over the unknown band."""
    laplacian: float = Field(default=0.5, ge=0)
    """Laplacian pyramid, five levels."""
    gradient: float = Field(default=1.0, ge=0)
    """Sobel gradients."""
    deep: float = Field(default=0.3, ge=0)
    """Each deep-supervision output (U2-Net: 1)."""
    choice: float = Field(default=0.1, ge=0)
    """Which decoder a photo of unknown category is for; moves the chooser alone."""


class TrainParams(_Section):
    common: CommonTrainParams = CommonTrainParams()
    loss: LossParams = LossParams()
    simple: SimpleParams = SimpleParams()
    hard: HardParams = HardParams()
    semi: SemiParams = SemiParams()
    multimodal: MultimodalParams = MultimodalParams()


class ClipParams(_Section):
    model: str = "local"
    """An open_clip architecture name, or `local`: a small CLIP trained on the text-image samples at hand."""
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
    """Mattes are compared at the photo's own size, at most this many pixels on the long side."""
    shadow_photos: int = Field(default=48, ge=0)
    """Newest unlabelled photos on which the int8 candidate and champion are compared with each other."""


class LimitParams(_Section):
    """What no released file may exceed, whatever the gate said; measured at export, on the machine that exports."""

    max_bytes: int = Field(default=16_000_000, ge=1)
    """Of the file of one decoder in one format."""
    max_latency_ratio: float = Field(default=1.5, gt=0)
    """A file's processor time an image against torch's float network, eager, both on one thread: the latency of an idle
    machine, measurable on a busy one."""
    max_peak_mb: float = Field(default=1500.0, gt=0)
    """Peak memory, 1e6 bytes, of the fresh process that runs the file: its Python and runtime too (ExecuTorch's
    binding brings torch)."""
    max_diff_mse: float = Field(default=1e-3, gt=0)
    """Mean square by which the mattes of a further format, which the gate does not judge, may differ from float."""


class ExportParams(_Section):
    calibration_images: int = Field(default=32, ge=1)
    """Training photos that set the quantisation ranges, per decoder."""
    max_int8_mse: float = Field(default=5e-4, ge=0)
    """Where int8 mattes differ more than this (mean square, the worst category's, on the calibration photos) from float
    ones, the convolutions that int8 hurts most stay in float, in every format."""
    formats: list[Literal["onnx", "executorch", "litert"]] = ["onnx"]
    """What the bundle holds. ONNX is what the gate judges, so it is always there; executorch and litert need
    `make formats` and take minutes."""
    limits: LimitParams = LimitParams()

    @model_validator(mode="after")
    def _formats_are_a_set_with_onnx(self) -> ExportParams:
        if "onnx" not in self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError("formats: name onnx, which the gate judges, and each further one once")
        return self


class RouteParams(_Section):
    budget: int = Field(default=24, ge=0)
    """Photos sent to people per run for a training label."""
    per_day: int = Field(default=96, ge=0)
    """…and per day (UTC), over all runs."""
    per_category: int = Field(default=32, ge=0)
    """…of one category per day; photos of unknown category are one more."""
    look: int = Field(default=480, ge=1)
    """Photos that the champion looks at per run: what a run costs does not grow with the catalog."""
    suspects: int = Field(default=8, ge=0)
    """Suspect mattes sent for review per run, oldest first."""
    eval_reviews: int = Field(default=4, ge=0)
    """Eval photos whose label is sent for review per run, the least credible first."""
    eval_doubt: float = Field(default=4.0, gt=1)
    """An eval label is doubted where every model errs at least this many times as much as is usual for it in the
    category."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Draws what the champion looks at, and settles ties."""


class LabelParams(_Section):
    people: int = Field(default=1, ge=1, le=9)
    """How many people Label Studio asks about each photo before its task counts as finished."""
    most_people: int = Field(default=3, ge=2, le=9)
    """Where people disagree another one is asked, up to so many; then the photo is left to an expert."""
    agree_mse: float = Field(default=0.01, ge=0, le=1)
    """Two people's mattes agree up to this mean squared difference, and then their mean is the label."""
    agree_iou: float = Field(default=0.9, ge=0, le=1)
    """Two people's mattes agree from this overlap on: for small subjects, of which the MSE says little."""
    compare_seeds: int = Field(default=2, ge=0, le=9)
    """After each cycle, so many trainings each on routed and on random new photos (`mm label compare`); 0: none."""
    compare_share: float = Field(default=0.25, gt=0, le=1)
    """All of these trainings together make at most this share of the steps of the cycle's own stages; scoring their
    models on the eval photos comes on top."""


PER_ARRIVAL = ("ingest", "structure", "drift", "route", "label")
"""Sections that no model of a cycle depends on."""


class MomentsParams(_Section):
    """How a gallery becomes moments (`mm moments`)."""

    gap_hours: float = Field(default=3.0, gt=0, le=48)
    """Photos farther apart than this in time are neighbours of one event only by others between them."""
    radius_km: float = Field(default=1.5, gt=0, le=200)
    """…and the same of their places."""
    speed_kmh: float = Field(default=15.0, ge=0, le=300)
    """By how much farther apart in place one camera's photos soon after each other may be: a trip is one event."""
    least: int = Field(default=2, ge=1)
    """Different photos that make a moment; smaller events are left alone."""
    best: int = Field(default=6, ge=1, le=50)
    """Photos shown of a moment."""
    inpainting: str = ""
    """TorchScript file of a learned inpainting model of LaMa's form; empty: the eraser clones from the photo itself."""


class Params(_Section):
    """All of `params.yaml`."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of weight initialisation, batch order and augmentation."""
    ingest: IngestParams = IngestParams()
    structure: StructureParams = StructureParams()
    drift: DriftParams = DriftParams()
    snapshot: SnapshotParams = SnapshotParams()
    split: SplitParams = SplitParams()
    route: RouteParams = RouteParams()
    label: LabelParams = LabelParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    clip: ClipParams = ClipParams()
    evaluate: EvaluateParams = EvaluateParams()
    gate: GateParams = GateParams()
    export: ExportParams = ExportParams()
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
        """Reads `params.yaml`; raises ParamsError that names file, field and remedy."""
        try:
            return Params.model_validate(read_yaml(path) or {})
        except ValidationError as error:
            raise ParamsError(f"{path}: {explain(error, Params)}") from None

    def with_values(self, **dotted: Any) -> Params:
        """A changed copy: `with_values(**{"train.simple.steps": 10})`."""
        data = self.model_dump()
        for name, value in dotted.items():
            *folders, last = name.split(".")
            node = data
            for folder in folders:
                node = node[folder]
            node[last] = value
        return Params.model_validate(data)

    def to_yaml(self) -> str:
        """All values, as `params.yaml` holds them."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)

    def cycle_digest(self) -> str:
        """Of what a cycle depends on; the rest acts when photos arrive, and a cycle meets it in the catalog."""
        return digest_of(self.model_dump(mode="json", exclude=set(PER_ARRIVAL)))
