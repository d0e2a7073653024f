"""The docs are true: their commands run, the messages that they explain exist, their links lead somewhere."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES
from samplegen import write_drop

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
GUIDE = PROJECT / "docs" / "operators-guide.md"
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.S)
TINY = {
    "structure.ocr": (),
    "model.encoder": "test_efficientnet",
    "model.pretrained": "",
    "split.min_hard": 0,
    "model.size": 64,
    "model.width": 8,
    "train.common.batch": 2,
    "train.simple.steps": 4,
    "train.hard.steps": 2,
    "train.semi.steps": 2,
    "train.multimodal.steps": 2,
    "train.multimodal.consistency": 1.0,
    "train.multimodal.contrastive": 0.1,
    "train.multimodal.captioned": 0.5,
    "clip.steps": 2,
    "evaluate.max_side": 64,
    "export.calibration_images": 4,
    "gate.min_images": 2,
    "gate.beat_blind": False,
    "gate.resamples": 200,
}


def blocks(page: Path) -> list[re.Match[str]]:
    return [*BLOCK.finditer(page.read_text())]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with params.yaml and photos as README's layout has them: sub-folder = category, mattes in alphas/."""
    (tmp_path / "params.yaml").write_text(Params().with_values(**TINY).to_yaml())
    for folder, kind, each in (("labelled", "pixel_labeled", 6), ("more", "unlabeled", 1)):
        made = write_drop(tmp_path / "made", kind, folder, dict.fromkeys(ALL_CATEGORIES, each), seed=each, size=64)
        for row in csv.DictReader((made / "manifest.csv").open()):
            for name, part in ((row["image"], ""), (row.get("alpha"), "alphas")):
                if name:
                    target = tmp_path / "photos" / folder / part / row["category"] / Path(row["image"]).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (made / name).rename(target.with_suffix(Path(name).suffix))
    return tmp_path


def run_blocks(page: Path, folder: Path) -> int:
    """Run the `sh` blocks of a page, in order, in one folder, as a person types them; each line must succeed.

    Returns how many lines ran.
    """
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MM_", "MLFLOW_", "DAGSTER_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MM_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "DAGSTER_HOME": str(folder / "dagster"),
        "PYTHONPATH": str(PROJECT),
    }
    (folder / "dagster").mkdir()
    ran = 0
    for block in blocks(page):
        if block["language"] == "sh" and not block["why"]:
            for line in block["text"].splitlines():
                done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
                ran += 1
    return ran


@pytest.mark.timeout(1800)
def test_the_guides_commands_run(house: Path) -> None:
    assert run_blocks(GUIDE, house) >= 12
    assert (house / "restored" / "inputs.json").is_file()


@pytest.mark.timeout(1800)
def test_the_readmes_commands_run_on_the_layout_that_it_shows(house: Path) -> None:
    assert run_blocks(README, house) >= 4
    status = subprocess.run(
        [sys.executable, "-m", "mm_core", "status", "--json"],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(status.stdout)
    assert counts["labelled"] == 6 * len(ALL_CATEGORIES) and counts["verdict"]
    assert {row["category"] for row in counts["samples"]} == set(ALL_CATEGORIES)


def test_readme_names_every_category_and_every_page() -> None:
    text = README.read_text()
    assert not [name for name in ALL_CATEGORIES if f"`{name}`" not in text]
    assert not [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text]


def test_what_is_not_run_says_why_and_where_it_is_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block["language"] in ("sh", "yaml", "json", "python", "text"), f"{page.name}: {block['text'][:40]}"
            for test in re.findall(r"tests/[\w/]+(?:\.py)?", block["why"] or ""):
                assert (PROJECT / test).exists(), test


def test_every_message_that_is_explained_exists() -> None:
    sources = "\n".join(
        path.read_text() for room in ("mm_core", "pipelines") for path in (PROJECT / room).rglob("*.py")
    )
    text = (PROJECT / "docs" / "troubleshooting.md").read_text()
    first = text[: text.index("| what you see")]
    messages = re.findall(r"^\| `(.+?)` \|", first, re.M)
    assert len(messages) >= 14
    for message in messages:
        words = re.sub(r"\s+", r"\\s+", re.escape(message).replace(r"\ ", " "))
        # A message may be written over two lines of the source.
        joined = re.sub(r'"\s*\n\s*f?"', "", sources)
        assert re.search(words, joined), message


def test_the_plan_for_ten_million_photos_has_the_figures_of_the_result_files() -> None:
    """`python benchmarks/scale_page.py` writes the page; a changed result file makes it stale."""
    spec = importlib.util.spec_from_file_location("scale_page", PROJECT / "benchmarks" / "scale_page.py")
    assert spec and spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.render() == page.PAGE.read_text()
    assert page.cell("ingest_scale.md", "ingest", "ratio") in page.PAGE.read_text()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_of_decisions_names_every_page_by_its_title() -> None:
    """A number is given once; numbers that no page has are named."""
    folder = PROJECT / "docs" / "decisions"
    index, numbers = (folder / "README.md").read_text(), set()
    for page in sorted(folder.glob("0*.md")):
        number, _, title = page.read_text().splitlines()[0].removeprefix("# ").partition(": ")
        assert f"| [{number}]({page.name}) | {title} |" in index and page.name.startswith(f"{number}-")
        assert number not in numbers
        numbers.add(number)
    missing = {f"{n:04}" for n in range(1, int(max(numbers)))} - numbers
    assert missing == {"0007", "0008", "0009", "0010", "0011", "0038", "0046"}
