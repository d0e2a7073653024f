"""Cache, order and cuts of training pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.imaging import pixel_cache
from mm_core.imaging.augment import augment
from mm_core.imaging.images import encode_alpha
from mm_core.imaging.pixel_cache import BalancedOrder, PixelCache, Pool, Shelf
from mm_core.storage.store import LocalStore, put_blob

SIZE = 64


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def frame_of(store: LocalStore, count: int, first: int = 0) -> pd.DataFrame:
    """Photos with a bright disc whose matte is exactly where the photo is bright."""
    rows = []
    for i in range(first, first + count):
        alpha = np.zeros((90, 120), np.float32)
        cv2.circle(alpha, (30 + 5 * (i % 12), 45), 18, 1.0, -1)
        photo = np.repeat((alpha * 200 + 20 + i % 7)[..., None], 3, 2).astype(np.uint8)
        rows.append(
            {
                "sample_id": put_blob(store, cv2.imencode(".png", photo)[1].tobytes()),
                "category": ("pets", "cards", None)[i % 3],
                "decoder": "saliency",
                "caption": None,
                "alpha_sha256": put_blob(store, encode_alpha(alpha)),
                "label_binary": None,
                "width": 120,
                "height": 90,
            }
        )
    return pd.DataFrame(rows).astype({"label_binary": "boolean"})


def test_the_cache_decodes_each_file_once_and_grows(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter()
    real = pixel_cache.load_rgb
    monkeypatch.setattr(
        pixel_cache, "load_rgb", lambda path, max_side: read.update([path.name]) or real(path, max_side)
    )
    frame, more = frame_of(store, 5), frame_of(store, 80)
    PixelCache(tmp_path / "cache", SIZE).fill(store, frame)
    cache = PixelCache(tmp_path / "cache", SIZE)
    cache.fill(store, more)
    assert set(read.values()) == {1}
    assert set(read) == set(more["sample_id"])
    photo = cache.photos[frame["sample_id"][0]]
    assert photo.shape == (80, 80, 3)
    matte = cache.mattes[frame["alpha_sha256"][0]]
    assert np.corrcoef(photo[..., 0].ravel(), matte.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("cut", [1, 40, 64, 65, 100])
def test_a_kill_between_rows_and_keys_costs_only_what_was_not_named(tmp_path: Path, cut: int) -> None:
    keys = [f"{i:064x}" for i in range(4)]
    rows = [np.full((3, 3), 10 * i + 1, np.uint8) for i in range(4)]
    shelf = Shelf(tmp_path, "x", (3, 3))
    shelf.append(list(zip(keys[:2], rows[:2], strict=True)))
    index = tmp_path / "x.index"
    index.write_bytes(index.read_bytes()[:cut])
    again = Shelf(tmp_path, "x", (3, 3))
    kept = cut // 65
    assert len(again) == kept
    again.append(list(zip(keys[kept:], rows[kept:], strict=True)))
    for key, row in zip(keys, rows, strict=True):
        assert (Shelf(tmp_path, "x", (3, 3))[key] == row).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=40)
def test_categories_take_equal_turns_and_no_row_repeats_within_its_epoch(a: int, b: int, c: int, seed: int) -> None:
    names = ["a"] * a + ["b"] * b + ["c"] * c
    order = BalancedOrder(names, seed, "s")
    rows = [order.row(slot) for slot in range(3 * 20)]
    assert Counter(names[row] for row in rows) == {"a": 20, "b": 20, "c": 20}
    for name, count in (("a", a), ("b", b), ("c", c)):
        assert len({row for row in rows if names[row] == name}) == min(count, 20)
        first_epoch = [row for row in rows if names[row] == name][:count]
        assert len(set(first_epoch)) == len(first_epoch)


def test_a_batch_depends_on_seed_stream_and_step_alone(tmp_path: Path, store: LocalStore) -> None:
    frame = frame_of(store, 9)
    cache = PixelCache(tmp_path / "cache", SIZE)
    cache.fill(store, frame)
    pool = Pool(frame, cache, 3, "simple/labeled")
    late = pool.draw(7, 6)
    for step in range(20):
        pool.draw(step, 6)
    again = Pool(frame, cache, 3, "simple/labeled").draw(7, 6)
    assert late.ids == again.ids
    assert (late.images == again.images).all()
    assert (late.alphas == again.alphas).all()
    others = [Pool(frame, cache, 4, "simple/labeled").draw(7, 6), Pool(frame, cache, 3, "hard/labeled").draw(7, 6)]
    assert all((late.images != other.images).any() for other in others)


def test_ranks_share_one_batch_out(tmp_path: Path, store: LocalStore) -> None:
    frame = frame_of(store, 9)
    cache = PixelCache(tmp_path / "cache", SIZE)
    cache.fill(store, frame)
    pool = Pool(frame, cache, 0, "s")
    whole = pool.draw(2, 6)
    parts = [pool.draw(2, 6, rank=rank, world=2) for rank in range(2)]
    assert [parts[i % 2].ids[i // 2] for i in range(6)] == whole.ids
    assert (parts[1].images == whole.images[1::2]).all()


def test_unlabelled_rows_have_empty_mattes_and_order_is_kept(tmp_path: Path, store: LocalStore) -> None:
    frame = frame_of(store, 5).assign(alpha_sha256=None)
    cache = PixelCache(tmp_path / "cache", SIZE)
    assert cache.fill(store, frame) == 5
    batches = list(Pool(frame, cache, 0, "validation").in_order(2))
    assert sum((batch.ids for batch in batches), []) == frame["sample_id"].tolist()
    assert not any(batch.alphas.any() for batch in batches)
    assert batches[1].categories[0] == "unknown"


def test_whole_photos_are_drawn_as_they_are_or_mirrored(tmp_path: Path, store: LocalStore) -> None:
    frame = frame_of(store, 6)
    cache = PixelCache(tmp_path / "cache", SIZE)
    cache.fill(store, frame)
    pool = Pool(frame, cache, 0, "s", whole=True)
    as_is = {i: pair for b in pool.in_order(4) for i, *pair in zip(b.ids, b.images, b.alphas, strict=True)}
    mirrored = set()
    for step in range(6):
        drawn, uncut = pool.draw(step, 5), pool.uncut(step, 5)
        assert drawn.ids == uncut.ids == Pool(frame, cache, 0, "s").draw(step, 5).ids
        for sample, image, alpha in zip(drawn.ids, drawn.images, drawn.alphas, strict=True):
            aside = not (image == as_is[sample][0]).all()
            pair = (image[:, ::-1], alpha[:, ::-1]) if aside else (image, alpha)
            assert all((one == other).all() for one, other in zip(pair, as_is[sample], strict=True))
            mirrored.add(aside)
        for sample, image, alpha in zip(uncut.ids, uncut.images, uncut.alphas, strict=True):
            assert (image == as_is[sample][0]).all() and (alpha == as_is[sample][1]).all()
    assert mirrored == {True, False}


def test_photo_and_matte_are_cut_alike() -> None:
    """Where the photo is bright, the matte is: any cut must keep that."""
    alpha = np.zeros((80, 80), np.uint8)
    cv2.ellipse(alpha, (30, 45), (20, 12), 20, 0, 360, 255, -1)
    photo = np.repeat(alpha[..., None], 3, 2) // 2 + 60
    agree = []
    for seed in range(40):
        cut, matte = augment(photo, alpha, SIZE, np.random.default_rng(seed))
        assert cut.shape == (SIZE, SIZE, 3)
        assert matte is not None
        assert matte.shape == (SIZE, SIZE)
        if 0.05 < matte.mean() / 255 < 0.95:
            agree.append(np.corrcoef(cut.mean(2).ravel(), matte.ravel())[0, 1])
    assert len(agree) > 30
    assert min(agree) > 0.9


def test_appending_reads_no_key_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes append in turn; each reads the other's keys, and only these."""
    first, second = Shelf(tmp_path, "x", (2,)), Shelf(tmp_path, "x", (2,))
    read: list[int] = []

    class Counted:
        def __init__(self, stream) -> None:
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.stream.close()

        def seek(self, to: int) -> None:
            self.stream.seek(to)

        def read(self, count: int) -> bytes:
            read.append(count // 65)
            return self.stream.read(count)

    real = Path.open

    def opened(path: Path, mode: str = "r"):
        return Counted(real(path, mode)) if mode == "rb" else real(path, mode)

    monkeypatch.setattr(Path, "open", opened)
    for number in range(10):
        shelf = (first, second)[number % 2]
        shelf.reload()
        shelf.append([(f"{number:064x}", np.array([number, 7], np.uint8))])
    assert read == [1] * 9
    assert first.stored() == [f"{number:064x}" for number in range(9)]
    assert [second[f"{number:064x}"].tolist() for number in range(10)] == [[number, 7] for number in range(10)]


@pytest.mark.parametrize("killed", [None, "before the index", "before the old files are gone"])
def test_a_new_generation_keeps_chosen_rows_and_open_ones(
    tmp_path: Path, killed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{i:064x}" for i in range(6)]
    shelf, other = Shelf(tmp_path, "x", (3,)), Shelf(tmp_path, "x", (3,))
    shelf.append([(key, np.full(3, n, np.uint8)) for n, key in enumerate(keys)])
    other.reload()
    kept = [keys[1], keys[4]]
    with monkeypatch.context() as patch:
        if killed == "before the index":
            patch.setattr(pixel_cache, "write_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        elif killed:
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: path.exists() and 1 / 0)
        if killed:
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                shelf.keep(kept)
        else:
            shelf.keep(kept)
    assert [int(other[key][0]) for key in keys] == list(range(6)), "another process reads on"
    again = Shelf(tmp_path, "x", (3,))
    there = keys if killed == "before the index" else kept
    assert again.stored() == there and [int(again[key][0]) for key in there] == [keys.index(key) for key in there]
    again.keep(kept)
    again.append([(keys[0], np.full(3, 9, np.uint8))])
    other.reload()
    assert other.stored() == [*kept, keys[0]] and int(other[keys[0]][0]) == 9
    assert len(list(tmp_path.glob("x*.u8"))) <= 1 + bool(killed)


def test_the_limit_removes_the_oldest_and_never_what_is_needed(tmp_path: Path, store: LocalStore) -> None:
    frames = [frame_of(store, 4, first) for first in (0, 4, 8, 12)]
    photo = 80 * 80 * 4
    cache = PixelCache(tmp_path / "cache", SIZE, limit=10 * photo)
    held = []
    for frame in frames:
        cache.fill(store, frame)
        again = PixelCache(tmp_path / "cache", SIZE)
        assert all(key in again.photos for key in frame["sample_id"])
        assert all(key in again.mattes for key in frame["alpha_sha256"].unique())
        held.append(len(again.photos))
    assert held == [4, 8, 5, 9], "down to half of the limit, which is five photos"
    ids = [key for frame in frames for key in frame["sample_id"]]
    assert cache.photos.stored() == ids[7:], "the newest are kept"
    everything = pd.concat(frames)
    cache.fill(store, everything)
    assert len(cache.photos) == 16, "needed beyond the limit"
    assert cache.fill(store, everything) == 0


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 12), st.integers(1, 8), st.integers(0, 2**20))
@settings(max_examples=60)
def test_drawn_rows_are_those_of_all_steps(a: int, b: int, steps: int, count: int, seed: int) -> None:
    """The oracle draws each step; the last round may count whole."""
    order = BalancedOrder(["a"] * a + ["b"] * b + ["c"], seed, "s")
    rows = {order.row(slot) for slot in range(steps * count)}
    rounded = {order.row(slot) for slot in range(-(-steps * count // 3) * 3)}
    drawn = order.drawn(steps * count)
    assert rows <= set(drawn.tolist()) == rounded
    assert drawn.tolist() == sorted(set(drawn.tolist()))
