"""Where each strategy's gradient goes, and what it draws."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mm_core.core.params import CommonTrainParams, Params
from mm_core.core.records import DECODERS
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.model.network import MattingNet, build_model
from mm_core.storage.store import LocalStore
from mm_core.training.multimodal import Multimodal, Towers, with_captions
from mm_core.training.semi import Semi, ramp
from mm_core.training.supervised import Supervised, choice_loss
from mm_core.training.trainer import NEW_RATE, DeviceBatch, _groups, to_device

CPU = torch.device("cpu")


@pytest.fixture
def net(params: Params) -> MattingNet:
    return build_model(params.model, 0)


@pytest.fixture
def pools(tmp_path: Path, store: LocalStore, draw, params: Params) -> dict:
    cache = PixelCache(tmp_path / "cache", params.model.size)
    frames = {
        "labeled": draw(2, 1).assign(caption="a pets of kind 0"),
        "unlabeled": draw(2, 2, labelled=False),
        "text": draw(2, 3, labelled=False, captions=True),
    }
    pools = {}
    for name, frame in frames.items():
        cache.fill(store, frame)
        pools[name] = [(Pool(frame, cache, 0, name, whole=name != "labeled"), 4)]
    return pools


def samples(strategy: Supervised, step: int = 0) -> dict[str, DeviceBatch]:
    return {name: to_device(batch, CPU) for name, batch in strategy.draw(step).items()}


def captions_of(*frames) -> dict[str, torch.Tensor]:
    texts = sorted({text for frame in frames for text in frame["caption"]})
    rng = np.random.default_rng(0)
    return {t: torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=8)).float(), dim=0) for t in texts}


def towers_of(pools: dict, draw) -> Towers:
    samples = sorted({sample for [(pool, _)] in pools.values() for sample in pool._ids})
    rng = np.random.default_rng(1)
    photos = {s: torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=8)).float(), dim=0) for s in samples}
    return Towers(captions_of(draw(2, 3, labelled=False, captions=True)), photos)


def moved(module: torch.nn.Module, loss: torch.Tensor) -> bool:
    """Whether the loss has a gradient that is not zero in any weight of the module."""
    grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


def test_replay_takes_its_share_of_each_batch(pools: dict, net: MattingNet, params: Params) -> None:
    hard, simple = pools["labeled"][0][0], pools["unlabeled"][0][0]
    strategy = Supervised(net, {"labeled": [(hard, 3), (simple, 1)]}, params.train.loss)
    for step in range(5):
        ids = strategy.draw(step)["labeled"].ids
        assert [sample in hard._ids for sample in ids] == [True, True, True, False]


def test_one_decoder_learns_from_all_photos_until_each_has_its_own(
    pools: dict, net: MattingNet, params: Params
) -> None:
    strategy = Supervised(net, {"labeled": pools["labeled"]}, params.train.loss, shared_decoder=0.5)
    batch = samples(strategy)
    assert set(batch["labeled"].decoders) > {"portrait"}
    first, *others = net.decoders.values()
    early = torch.stack(list(strategy.losses(batch, 0.49).values())).sum()
    assert moved(first, early) and not any(moved(decoder, early) for decoder in others)
    for decoder in others:
        assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), first.parameters(), strict=True))
    late = torch.stack(list(strategy.losses(batch, 0.5).values())).sum()
    assert [moved(net.decoders[name], late) for name in DECODERS] == [
        name in batch["labeled"].decoders for name in DECODERS
    ]


def test_supervised_reaches_only_the_decoders_of_the_batch(pools: dict, net: MattingNet, params: Params) -> None:
    strategy = Supervised(net, {"labeled": pools["labeled"]}, params.train.loss)
    batch = samples(strategy)["labeled"]
    rows = [i for i, decoder in enumerate(batch.decoders) if decoder == "portrait"]
    only = DeviceBatch(
        [batch.ids[i] for i in rows],
        batch.images[rows],
        batch.alpha[rows],
        batch.binary[rows],
        ["portrait"] * len(rows),
        [],
        ["portrait"] * len(rows),
    )
    total = torch.stack(list(strategy.losses({"labeled": only}, 0.0).values())).sum()
    assert moved(net.encoder, total)
    assert moved(net.decoders["portrait"], total)
    assert not moved(net.decoders["scenery"], total)


def test_choosing_a_decoder_moves_the_chooser_alone_and_unknown_photos_say_nothing(
    pools: dict, net: MattingNet, params: Params
) -> None:
    strategy = Supervised(net, {"labeled": pools["labeled"]}, params.train.loss)
    batch = samples(strategy)["labeled"]
    term = strategy.losses({"labeled": batch}, 0.0)["choice"]
    # Three decoders and weights of zero: the logarithm of three.
    assert float(term.detach()) == pytest.approx(params.train.loss.choice * math.log(3), rel=1e-5)
    assert moved(net.chooser, term)
    assert not moved(net.encoder, term)
    assert not moved(net.decoders, term)
    unknown = replace(batch, categories=["unknown"] * len(batch.ids))
    assert float(strategy.losses({"labeled": unknown}, 0.0)["choice"].detach()) == 0
    both = Semi(net, {n: pools[n] for n in ("labeled", "unlabeled")}, params.train.loss, params.train.semi)
    plain = replace(samples(both)["unlabeled"], decoders=["scenery"] * 4, categories=["scenery"] * 4)
    torch.nn.init.constant_(net.chooser.bias[2:], 5.0)
    # The photos with mattes say nothing here, those without are sure.
    sure = both.losses({"labeled": unknown, "unlabeled": plain}, 0.0)["choice"]
    one = params.train.loss.choice * math.log(1 + 2 * math.exp(-5))
    assert float(sure.detach()) == pytest.approx(one / 2, rel=1e-3)
    # Row for row: logits that are right for each photo of both batches, and for none where the batches change places.
    known = {"labeled": replace(batch, decoders=["portrait"] * 4, categories=["portrait"] * 4), "unlabeled": plain}
    logits = 9 * torch.eye(3)[[DECODERS.index(name) for b in known.values() for name in b.decoders]]
    assert float(choice_loss(logits, list(known.values()))) < 1e-3
    assert float(choice_loss(logits, list(known.values())[::-1])) == pytest.approx(9, rel=1e-3)
    off = Supervised(net, {"labeled": pools["labeled"]}, params.train.loss.model_copy(update={"choice": 0.0}))
    assert "choice" not in off.losses({"labeled": batch}, 0.0)


def test_semi_teaches_the_auxiliaries_and_the_encoder_and_never_the_target(
    pools: dict, net: MattingNet, params: Params
) -> None:
    strategy = Semi(net, {n: pools[n] for n in ("labeled", "unlabeled")}, params.train.loss, params.train.semi)
    term = strategy.losses(samples(strategy), 1.0)["semi"]
    assert strategy.auxiliary is not None
    assert moved(net.encoder, term)
    assert all(moved(decoder, term) for decoder in strategy.auxiliary.decoders.values())
    assert not moved(net.decoders, term)


def test_the_encoder_listens_to_the_auxiliaries_as_far_as_the_ramp_has_risen(
    pools: dict, net: MattingNet, params: Params
) -> None:
    strategy = Semi(net, {n: pools[n] for n in ("labeled", "unlabeled")}, params.train.loss, params.train.semi)
    assert strategy.auxiliary is not None
    batch = samples(strategy)
    # Running statistics do not matter to gradients in training mode, so two passes compare.
    pulls = {}
    for progress in (0.0, 1.0):
        torch.manual_seed(0)
        term = strategy.losses(batch, progress)["semi"]
        weight = next(net.encoder.parameters())
        auxiliary = next(strategy.auxiliary.parameters())
        pulls[progress] = torch.autograd.grad(term, [weight, auxiliary])
    assert torch.allclose(pulls[0.0][0], pulls[1.0][0] * math.exp(-5), rtol=1e-3, atol=1e-9)
    assert torch.allclose(pulls[0.0][1], pulls[1.0][1])


def test_semi_without_unlabelled_photos_is_supervised(pools: dict, net: MattingNet, params: Params) -> None:
    strategy = Semi(net, {"labeled": pools["labeled"]}, params.train.loss, params.train.semi)
    assert strategy.auxiliary is None
    assert "semi" not in strategy.losses(samples(strategy), 1.0)


def test_the_ramp() -> None:
    assert ramp(0, 0.1) == pytest.approx(math.exp(-5))
    assert ramp(0.05, 0.1) == pytest.approx(math.exp(-1.25))
    assert ramp(0.1, 0.1) == ramp(1, 0.1) == 1


@pytest.fixture
def multimodal(pools: dict, net: MattingNet, params: Params, draw) -> Multimodal:
    towers = towers_of(pools, draw)
    strategy = Multimodal(net, pools, params.train.loss, params.train.semi, params.train.multimodal, towers)
    # As after some steps: text makes a difference.
    torch.nn.init.normal_(strategy.fusion.out.weight, std=0.5)
    return strategy


def test_multimodal_adds_three_terms_to_semi(multimodal: Multimodal, params: Params) -> None:
    batch = samples(multimodal)
    terms = multimodal.losses(batch, 1.0)
    assert all(torch.isfinite(term) for term in terms.values())
    assert moved(multimodal.fusion, terms["captioned"])
    assert moved(multimodal.fusion, terms["contrast"])
    assert moved(multimodal.net.encoder, terms["contrast"])
    before = Semi(multimodal.net, multimodal._pools, params.train.loss, params.train.semi).losses(batch, 1.0)
    assert set(terms) - set(before) == {"captioned", "text", "contrast"} and "semi" in before


def test_only_labelled_photos_are_recorded_in_the_decoders_statistics(multimodal: Multimodal) -> None:
    """At inference a decoder never receives fused features."""
    batches, plain = samples(multimodal), copy.deepcopy(multimodal.net).train()
    labeled = batches["labeled"]
    images = torch.cat([batch.images for batch in batches.values()])
    maps = plain.encode(images.contiguous(memory_format=torch.channels_last))
    plain.route([m[: len(labeled.ids)] for m in maps], labeled.decoders)
    multimodal.train().losses(batches, 1.0)
    found, wanted = (dict(net.decoders.named_buffers()) for net in (multimodal.net, plain))
    means = [name for name in wanted if name.endswith("running_mean")]
    assert means
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in means)
    assert 0.0 not in {m.momentum for m in multimodal.net.modules() if isinstance(m, torch.nn.BatchNorm2d)}


def test_equal_captions_are_no_negatives_of_each_other(multimodal: Multimodal) -> None:
    batch = samples(multimodal)["text"]
    features = multimodal.net.encode(batch.images)

    def contrast(captions: list[str]) -> float:
        text = multimodal.texts(captions)
        return float(multimodal._contrast(features, multimodal.fusion(features, text), text, captions).detach())

    one, other = sorted(set(batch.captions))[:2]
    assert contrast([one] * 4) == pytest.approx(0, abs=1e-6)  # all texts are the anchor's own: nothing to tell apart
    assert contrast([one, one, one, other]) > 0.01


def test_the_text_side_teaches_and_gets_no_gradient(multimodal: Multimodal) -> None:
    term = multimodal.losses(samples(multimodal), 1.0)["text"]
    assert float(term.detach()) > 0
    assert moved(multimodal.net.decoders, term)
    assert not moved(multimodal.fusion, term)


def test_an_untrained_fusion_changes_nothing(pools: dict, net: MattingNet, params: Params, draw) -> None:
    towers = towers_of(pools, draw)
    strategy = Multimodal(net, pools, params.train.loss, params.train.semi, params.train.multimodal, towers)
    strategy.eval()
    batch = samples(strategy)["text"]
    features = net.encode(batch.images)
    fused = strategy.fusion(features, strategy.texts(batch.captions))
    assert torch.equal(fused[-1], features[-1])


def test_rows_without_a_caption_borrow_the_nearest_of_their_category(draw) -> None:
    frame, texts = draw(1, 1), draw(2, 3, labelled=False, captions=True)
    frame.loc[2, "category"] = "cards"
    frame["caption"] = ["  ", "a dog of mine", None]
    axes = dict(zip(texts["caption"], torch.eye(6), strict=True))
    # The first photo is most like a caption of another category, then like the second of its own.
    looks = [axes["a scenery of kind 0"] + 0.5 * axes["a portrait of kind 1"], torch.ones(6), axes["a pets of kind 1"]]
    towers = Towers(axes, dict(zip(frame["sample_id"], looks, strict=True)))
    found = with_captions(frame, texts, towers)["caption"].tolist()
    assert found == ["a portrait of kind 1", "a dog of mine", "a pets of kind 1"]


def test_texts_are_spread_and_new_modules_learn_faster(multimodal: Multimodal) -> None:
    """A narrow cone of CLIP vectors would hide what tells two captions apart."""
    assert multimodal._vectors.mean(0).abs().max() < 1e-5
    assert float(multimodal._vectors.std(unbiased=False)) == pytest.approx(1, rel=0.01)
    groups = _groups(multimodal, CommonTrainParams(weight_decay=0.1))
    multipliers = {id(p): group["lr_multiplier"] for group in groups for p in group["params"]}
    assert set(multipliers) == {id(p) for p in multimodal.parameters()}
    assert {multipliers[id(p)] for p in multimodal.net.parameters()} == {1.0}
    assert {multipliers[id(p)] for p in multimodal.fusion.parameters()} == {NEW_RATE}
    assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in groups for p in group["params"])
