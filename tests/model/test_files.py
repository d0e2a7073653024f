"""A model file: exact round trip, stable identity, clear refusals."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_core.core.errors import InputError
from mm_core.core.records import sha256_file
from mm_core.model.files import load_model, read_meta, save_model
from mm_core.model.meta import weights_digest
from mm_core.model.network import build_model


def test_round_trip_is_exact_and_the_digest_is_the_files(net, tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    digest = save_model(path, net, {"stage": "simple"})
    assert digest == sha256_file(path)
    loaded, meta = load_model(path)
    own = {"model": net.config.model_dump(mode="json"), "foreground_scale": 1.0}
    assert meta == {"stage": "simple", **own} == read_meta(path)
    assert loaded.config == net.config and not loaded.training
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images, "portrait"), net.eval()(images, "portrait"))
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_the_same_weights_give_the_same_digest(net, tiny, tmp_path):
    meta = {"stage": "hard", "steps": 3, "seed": 0}
    first = save_model(tmp_path / "a", net, meta)
    turned = build_model(tiny, 0).to(memory_format=torch.channels_last)
    assert save_model(tmp_path / "b", turned, dict(reversed(meta.items()))) == first
    assert save_model(tmp_path / "c", build_model(tiny, 1), meta) != first


def test_the_weights_alone_have_a_digest_of_their_own(net, tiny, tmp_path):
    """A stage without steps passes its start weights on under another name."""
    first, other = tmp_path / "a", tmp_path / "b"
    assert save_model(first, net, {"stage": "hard"}) != save_model(other, net, {"stage": "semi", "steps": 0})
    assert weights_digest(first) == weights_digest(other)
    seen = {weights_digest(first)}
    for number, changed in enumerate((build_model(tiny, 1), build_model(tiny.model_copy(update={"size": 96}), 0))):
        save_model(tmp_path / f"{number}", changed, {"stage": "hard"})
        seen.add(weights_digest(tmp_path / f"{number}"))
    assert len(seen) == 3
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    assert weights_digest(first) not in seen


def test_half_precision_weights_are_saved_in_float32(net, tmp_path):
    save_model(tmp_path / "m", net.bfloat16(), {})
    kinds = {value.dtype for value in load_file(tmp_path / "m").values()}
    assert kinds == {torch.float32, torch.int64}


def test_loading_leaves_the_global_generator_alone(net, tmp_path):
    save_model(tmp_path / "m", net, {})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(tmp_path / "m")
    assert torch.equal(torch.rand(2), expected)


def test_wrong_files_are_refused_with_a_remedy(net, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match=r"m\.safetensors: no such file; give"):
        load_model(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="without the metadata key 'mm'"):
        load_model(path)
    config = net.config.model_dump(mode="json")
    save_file({"x": torch.zeros(1)}, path, metadata={"mm": json.dumps({"model": config})})
    with pytest.raises(InputError, match="do not fit test_efficientnet"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"mm": json.dumps({"model": config | {"depth": 3}})})
    with pytest.raises(InputError, match=r"model\.depth"):
        load_model(path)


def test_a_file_without_read_permission_is_not_called_missing(net):
    """safetensors says "No such file"; root reads any file, so a process of another user tries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_model(path, net, {})
        Path(folder).chmod(0o755)
        path.chmod(0)
        child = os.fork()
        if not child:
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                read_meta(path)
            except PermissionError as error:
                os._exit(0 if error.filename == str(path) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_truncated_file_is_refused(net, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, net, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(path)


def test_models_from_before_the_chooser_load_with_an_untrained_one_and_all_else_is_strict(net, tmp_path):
    torch.nn.init.normal_(net.chooser.weight)
    save_model(tmp_path / "new", net, {})
    assert torch.equal(load_model(tmp_path / "new")[0].chooser.weight, net.chooser.weight)
    state = load_file(tmp_path / "new")
    metadata = {"mm": json.dumps(read_meta(tmp_path / "new"))}
    old = {name: value for name, value in state.items() if not name.startswith("chooser.")}
    save_file(old, tmp_path / "old", metadata=metadata)
    loaded, _ = load_model(tmp_path / "old")
    assert not loaded.chooser.weight.any() and not loaded.chooser.bias.any()
    assert loaded.chosen(loaded.encode(torch.randn(2, 3, 64, 64))) == ["saliency", "saliency"]
    del old["encoder.detail.0.weight"]
    save_file(old, tmp_path / "broken", metadata=metadata)
    with pytest.raises(InputError, match="do not fit"):
        load_model(tmp_path / "broken")


def test_the_foreground_scale_is_kept_and_has_a_digest_of_its_own(net, tmp_path):
    image = torch.randn(1, 3, 64, 64)
    save_model(tmp_path / "plain", net, {})
    net.eval().foreground_scale = 0.5
    save_model(tmp_path / "scaled", net, {})
    plain, scaled = (load_model(tmp_path / name)[0] for name in ("plain", "scaled"))
    assert (plain.foreground_scale, scaled.foreground_scale) == (1.0, 0.5)
    assert weights_digest(tmp_path / "plain") != weights_digest(tmp_path / "scaled")
    with torch.inference_mode():
        logits = plain(image, "portrait")
        assert torch.equal(scaled(image, "portrait"), torch.where(logits > 0, 0.5 * logits, logits))
    assert (logits > 0).any() and (logits < 0).any()


@pytest.mark.parametrize("bad", ["NaN", "0", "-1.0", "1.5", '"half"', "true", "null"])
def test_a_foreground_scale_out_of_range_is_refused(net, tmp_path, bad):
    save_model(tmp_path / "good", net, {})
    text = json.dumps(read_meta(tmp_path / "good")).replace('"foreground_scale": 1.0', f'"foreground_scale": {bad}')
    save_file(load_file(tmp_path / "good"), tmp_path / "bad", metadata={"mm": text})
    with pytest.raises(InputError, match=r"foreground_scale is .*not a number in \(0, 1\]; train the model again"):
        load_model(tmp_path / "bad")


def test_models_from_before_the_foreground_scale_are_not_scaled(net, tmp_path):
    save_model(tmp_path / "new", net, {})
    meta = {name: value for name, value in read_meta(tmp_path / "new").items() if name != "foreground_scale"}
    save_file(load_file(tmp_path / "new"), tmp_path / "old", metadata={"mm": json.dumps(meta)})
    assert load_model(tmp_path / "old")[0].foreground_scale == 1
