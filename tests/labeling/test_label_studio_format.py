import contextlib
import copy
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle as sdk_decode
from label_studio_sdk.converter.brush import mask2rle

from mm_core.core.records import ALL_CATEGORIES
from mm_core.labeling.label_studio_format import (
    LABEL_CONFIG,
    REASONS,
    BadAnnotation,
    brush_region,
    choice_region,
    make_task,
    read_annotation,
)
from mm_core.labeling.rle import BadRle, decode_rle, encode_rle


def soft(height=40, width=56):
    across = np.linspace(0, 255, width)
    return np.rint(np.broadcast_to(across, (height, width))).astype(np.uint8)


def annotation(alpha=None, category="pets"):
    choice = {"type": "choices", "from_name": "category", "to_name": "image", "value": {"choices": [category]}}
    return {
        "id": 7,
        "completed_by": {"id": 3, "email": "ann@example.com"},
        "updated_at": "2026-11-02T10:00:00.5Z",
        "result": [brush_region(soft() if alpha is None else alpha), choice],
    }


def blocks(values, rng, run_bits):
    """An encoder of its own: cuts where it likes, runs or literals, as the browser's may."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{b - 1:04b}" for b in run_bits)
    i = 0
    while i < len(values):
        size = int(rng.integers(0, 4))
        longest = min(2 ** run_bits[size], len(values) - i)
        length = int(rng.integers(1, longest + 1))
        same = 1
        while same < length and values[i + same] == values[i]:
            same += 1
        if rng.random() < 0.5:
            bits += f"1{size:02b}{same - 1:0{run_bits[size]}b}{values[i]:08b}"
            i += same
        else:
            words = "".join(f"{v:08b}" for v in values[i : i + length])
            bits += f"0{size:02b}{length - 1:0{run_bits[size]}b}{words}"
            i += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.integers(1, 256))
def test_decodes_what_the_sdk_encodes_and_any_other_cut(seed, height, width, levels):
    rng = np.random.default_rng(seed)
    alpha = (rng.integers(0, levels, (height, width)) * (255 // levels)).astype(np.uint8)
    ours = encode_rle(alpha)
    assert np.array_equal(decode_rle(ours, width, height), alpha)
    assert ours == mask2rle(alpha)[: len(ours)]  # the SDK's may end in a byte that says nothing
    rgba = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    run_bits = [int(b) for b in rng.integers(1, 17, 4)]
    rle = blocks(rgba.ravel().tolist(), rng, run_bits)
    assert np.array_equal(sdk_decode(rle).reshape(height, width, 4), rgba)
    assert np.array_equal(decode_rle(rle, width, height), rgba[:, :, 3])


def test_a_long_run_and_a_large_matte_come_back():
    alpha = np.zeros((600, 700), np.uint8)
    alpha[100:500, 200:600] = 255
    assert np.array_equal(decode_rle(encode_rle(alpha), 700, 600), alpha)


@settings(max_examples=150)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused_or_decoded_never_worse(noise, with_header):
    rle = list((np.array([8 * 6 * 4], ">u4").tobytes() + b"\x38" + noise) if with_header else noise)
    with contextlib.suppress(BadRle):
        assert decode_rle(rle, 8, 6).shape == (6, 8)


def test_a_false_header_is_refused_before_anything_is_allocated():
    rle = encode_rle(soft())
    rle[:4] = [255, 255, 255, 255]
    with pytest.raises(BadRle, match="claims 4294967295 values"):
        decode_rle(rle, 56, 40)


@pytest.mark.parametrize(
    "rle", [None, "text", [1, 2, 3], [1.5] * 20, [256] * 20, [-1] * 20, [None] * 20, [math.nan] * 20, [[0]] * 20]
)
def test_what_is_no_run_length_code_is_refused(rle):
    with pytest.raises(BadRle, match="rle"):
        decode_rle(rle, 56, 40)


def test_a_cut_off_code_is_refused():
    rle = encode_rle(soft())
    with pytest.raises(BadRle, match="ends before"):
        decode_rle(rle[: len(rle) // 2], 56, 40)


def test_a_good_annotation_comes_back_exactly():
    read = read_annotation(annotation(), 56, 40)
    assert np.array_equal(read.alpha, soft())
    assert (read.category, read.annotator) == ("pets", "ann@example.com")
    assert read.updated_at == "2026-11-02T10:00:00.500000+00:00"


def test_unknown_bands_and_refusals_are_read():
    band = np.zeros((40, 56), np.uint8)
    band[10:20] = 255
    work = annotation()
    work["result"].append(brush_region(band, "Unknown"))
    read = read_annotation(work, 56, 40)
    assert np.array_equal(read.alpha, soft()) and np.array_equal(read.unknown, band > 0)
    work["result"] = [choice_region("reject", "private")]
    read = read_annotation(work, 56, 40)
    assert read.alpha is None and read.rejected == "private"


def test_several_regions_are_united():
    left, right = soft().copy(), soft().copy()
    left[:, 20:] = 0
    right[:, :30] = 0
    work = annotation(left)
    work["result"].append(brush_region(right))
    expected = np.maximum(left, right)
    assert np.array_equal(read_annotation(work, 56, 40).alpha, expected)


def _set(*path, to):
    def change(work):
        node = work
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


HOSTILE = {
    "result missing": (_set("result", to=None), "no list"),
    "region no object": (_set("result", 0, to="x"), "not an object"),
    "value missing": (_set("result", 0, "value", to=None), "not an object"),
    "unknown control": (_set("result", 0, "from_name", to="other"), "label config"),
    "unknown type": (_set("result", 0, "type", to="polygonlabels"), "label config"),
    "unhashable type": (_set("result", 0, "type", to=["brushlabels"]), "label config"),
    "unknown label": (_set("result", 0, "value", "brushlabels", to=["Sky"]), "labelled"),
    "two labels": (_set("result", 0, "value", "brushlabels", to=["Foreground", "Sky"]), "labelled"),
    "other format": (_set("result", 0, "value", "format", to="png"), "format"),
    "wrong width": (_set("result", 0, "original_width", to=57), "of size"),
    "swapped size": (lambda w: w["result"][0].update(original_width=40, original_height=56), "of size"),
    "width as text": (_set("result", 0, "original_width", to="56"), "of size"),
    "NaN width": (_set("result", 0, "original_width", to=math.nan), "of size"),
    "boolean size": (_set("result", 0, "original_width", to=True), "of size"),
    "rotated": (_set("result", 0, "image_rotation", to=90), "rotated"),
    "NaN score": (_set("result", 0, "score", to=math.nan), "score"),
    "score 31": (_set("result", 0, "score", to=31), "score"),
    "short rle": (_set("result", 0, "value", "rle", to=[1, 2, 3]), "rle"),
    "huge claim": (lambda w: w["result"][0]["value"]["rle"].__setitem__(slice(0, 4), [255] * 4), "claims"),
    "nothing painted": (lambda w: w["result"].pop(0), "nothing is painted"),
    "no category": (lambda w: w["result"].pop(1), "no category"),
    "unknown category": (_set("result", 1, "value", "choices", to=["cars"]), "category"),
    "two categories": (_set("result", 1, "value", "choices", to=["pets", "cards"]), "category"),
    "category twice": (lambda w: w["result"].append(choice_region("category", "pets")), "twice"),
    "unknown refusal": (lambda w: w["result"].append(choice_region("reject", "ugly")), "reject"),
    "only Unknown painted": (_set("result", 0, "value", "brushlabels", to=["Unknown"]), "nothing is painted"),
    "unhashable category": (_set("result", 1, "value", "choices", to=[{}]), "category"),
    "no time": (_set("updated_at", to=None), "ISO 8601"),
    "nonsense time": (_set("updated_at", to="yesterday"), "ISO 8601"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_annotations_are_refused_with_the_reason(name):
    change, reason = HOSTILE[name]
    work = copy.deepcopy(annotation())
    change(work)
    with pytest.raises(BadAnnotation, match=reason):
        read_annotation(work, 56, 40)


def test_an_empty_matte_is_refused():
    with pytest.raises(BadAnnotation, match="nothing is painted"):
        read_annotation(annotation(np.zeros((40, 56), np.uint8)), 56, 40)


@pytest.mark.parametrize("who", [None, True, 12, {"id": 4}, {"email": "<script>\n'"}, ["x"]])
def test_annotators_are_short_plain_names(who):
    name = read_annotation({**annotation(), "completed_by": who}, 56, 40).annotator
    assert name and name.isprintable() and "<" not in name


def test_label_config_names_what_the_reader_accepts():
    root = ElementTree.fromstring(LABEL_CONFIG)
    choices = {c.get("name"): [choice.get("value") for choice in c.iter("Choice")] for c in root.iter("Choices")}
    assert choices == {"category": list(ALL_CATEGORIES), "reject": list(REASONS)}
    assert [label.get("value") for label in root.iter("Label")] == ["Foreground", "Unknown"]
    region = brush_region(soft())
    assert root.find(".//BrushLabels").get("name") == region["from_name"]
    assert root.find(".//Image").get("name") == region["to_name"]


def test_the_reason_stands_above_and_the_category_beside_the_photo():
    root = ElementTree.fromstring(LABEL_CONFIG)
    assert root[0].tag == "Header" and root[0].get("value") == "$why"
    (columns,) = [view for view in root.iter("View") if "display: flex" in (view.get("style") or "")]
    with_photo, with_category = columns
    assert with_photo.find("Image") is not None
    assert [chooser.get("name") for chooser in with_category.findall("Choices")] == ["category", "reject"]


def test_a_known_category_is_chosen_beforehand_with_and_without_a_matte():
    def chosen(alpha, category):
        task = make_task("k", "/x.jpg", {"why": "because"}, alpha, category, "3")
        assert task["data"]["why"] == "because"
        return [(r["type"], r["value"].get("choices")) for p in task.get("predictions", []) for r in p["result"]]

    matte = np.zeros((4, 4), np.uint8)
    assert chosen(None, "pets") == [("choices", ["pets"])]
    assert chosen(matte, "pets") == [("brushlabels", None), ("choices", ["pets"])]
    assert chosen(matte, None) == [("brushlabels", None)] and chosen(None, None) == []
    # The config refers to the reason: the server takes no task without one.
    assert make_task("k", "/x.jpg", {}, None, None, "3")["data"]["why"] == ""
