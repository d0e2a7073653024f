"""params.yaml is typed once: what it says is what the code knows, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_core.core.errors import ParamsError
from mm_core.core.params import Params, SimpleParams
from mm_core.core.params_file import MOST_BYTES, dotted_names

PROJECT = Path(__file__).resolve().parents[2]


def test_the_projects_file_says_exactly_the_defaults() -> None:
    assert Params.load(PROJECT / "params.yaml") == Params()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {simple: {stepps: 3}}", "train.simple.stepps"),
        ("gate: {alpha: 2}", "gate.alpha"),
        ("model: {size: 100}", "model.size"),
        ("clip: {model: ViT-B-32}", "clip"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match="params.yaml") as caught:
        Params.load(path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("train: {simple: {stepps: 3}}", "did you mean train.simple.steps?"),
        ("trian: {simple: {steps: 3}}", "did you mean train?"),
        ("train: {comon: {batch: 8, ema: 0.9}}", "name; did you mean train.common?"),
        ("train: {lr: 0.1}", "train.simple.lr"),
        ("gate: {resample: 200}", "did you mean gate.resamples?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(tmp_path: Path, text: str, meant: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        Params.load(path)
    assert meant in str(caught.value)


def test_a_name_that_is_like_no_other_gets_no_guess_and_a_bad_value_none_either(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    # The second and third name existed once (docs/decisions/0043).
    unlike = ["zzqqxx: 1", "train: {semi: {view: 1.0}}", "train: {multimodal: {distil: 0.5}}"]
    for text in (*unlike, "gate: {resamples: many}"):
        path.write_text(text)
        with pytest.raises(ParamsError) as caught:
            Params.load(path)
        assert "did you mean" not in str(caught.value)
        assert ("remove it" in str(caught.value)) == (text in unlike)
    assert {"train.simple.lr", "seed", "gate.floors"} <= set(dotted_names(Params))


NAMES = "abcdefghijk"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip(NAMES, NAMES[1:], strict=False)
)
"""3 x 9^10 words, if someone writes them out."""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (BOMB.encode(), "aliases"),
        (b"seed: 1 #" + b"x" * MOST_BYTES, "more than"),
        (b"\x89PNG\r\n\x1a\n\0\xff", "not valid YAML"),
        (b"[" * 5000, "not valid YAML"),
        (b"- 1", "the file"),
        (b"!!python/object/apply:os.system ['touch ran']", "not valid YAML"),
        (b"? " + b"x" * 100_000 + b"\n: 1", "no parameter of this name"),
    ],
)
def test_what_is_no_params_file_is_told_in_a_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(ParamsError, match="params.yaml") as caught:
        Params.load(path)
    assert said in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises(ParamsError, match="cannot be read"):
        Params.load(tmp_path)


def test_a_missing_file_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="MM_PARAMS"):
        Params.load(tmp_path / "none.yaml")


def test_yaml_round_trip_and_digest(tmp_path: Path) -> None:
    changed = Params().with_values(**{"train.simple.steps": 7, "gate.margins": {"mse": 0.2}})
    path = tmp_path / "params.yaml"
    path.write_text(changed.to_yaml())
    assert Params.load(path) == changed
    assert changed.cycle_digest() != Params().cycle_digest()
    assert changed.cycle_digest() == Params.load(path).cycle_digest()


@pytest.mark.parametrize(("photos", "steps"), [(0, 10), (20, 10), (21, 10), (30, 15), (50, 25), (160_000, 25)])
def test_steps_grow_with_photos_up_to_a_limit(photos: int, steps: int) -> None:
    simple = SimpleParams(steps=10, photos=20, max_growth=2.5)
    assert simple.with_steps_for(photos).steps == steps
    assert SimpleParams(steps=0, photos=1).with_steps_for(photos).steps == 0


def test_the_reference_is_what_mm_params_writes() -> None:
    """docs/parameters.md is made by `mm params > docs/parameters.md`."""
    from mm_core.cli.reference import reference

    text = (PROJECT / "docs" / "parameters.md").read_text()
    assert text == reference()
    assert "| `gate.alpha` | `0.05` | number, > 0, < 0.5 |" in text and "| `seed` | `0` | whole number, ≥ 0" in text


def test_every_field_is_documented() -> None:
    def undocumented(model, prefix=""):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from undocumented(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield prefix + name

    inherited = {f"train.{s}.{f}" for s in ("hard", "semi", "multimodal") for f in ("steps", "lr")}
    assert set(undocumented(Params)) <= inherited


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "field", ["train: {loss: {bce: VALUE}}", "gate: {alpha: VALUE}", "ingest: {suspect: {edge_contrast: VALUE}}"]
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(field.replace("VALUE", value))
    with pytest.raises(ParamsError, match="finite number"):
        Params.load(path)
