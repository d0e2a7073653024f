"""The docs are true: their commands run, the messages that they explain exist, their links lead somewhere."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from typer.testing import CliRunner

from mm_core.cli.app import app
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, sha256_file
from mm_core.storage.catalog import Catalog
from pipelines.definitions import defs
from samplegen import write_drop
from tests.mm_server import serve_mm

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
DOCS = sorted((PROJECT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PAGES = sorted(
    {
        README,
        *DOCS,
        *((PROJECT / target).resolve() for target in LINK.findall(README.read_text()) if target.endswith(".md")),
    }
)
"""README, what it links to, and all of docs/."""
GUIDE, DATA, LABELLING, MLFLOW = (
    PROJECT / "docs" / f"{name}.md" for name in ("operators-guide", "data", "labelling", "mlflow-and-dvc")
)
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
    "gate.beat_blind": False,
    "gate.floors": {"mse": 1.0},
    "gate.quantised_mse": 100.0,
    "gate.resamples": 200,
}
"""Trainings of seconds, and a gate that promotes their first model: most commands need a champion."""
LABELLED = 24
"""Labelled photos of each category. They show 20 scenes or more, as README asks for; some of them look alike."""


def blocks(page: Path) -> list[re.Match[str]]:
    return [*BLOCK.finditer(page.read_text())]


def make_house(folder: Path) -> Path:
    """Make a folder as README assumes it.

    It has params.yaml and photos in README's layout: the sub-folder is the category, mattes lie in alphas/. One photo
    without a matte is holiday.jpg too.
    """
    (folder / "params.yaml").write_text(Params().with_values(**TINY).to_yaml())
    for name, kind, each in (("labelled", "pixel_labeled", LABELLED), ("more", "unlabeled", 1)):
        made = write_drop(folder / "made", kind, name, dict.fromkeys(ALL_CATEGORIES, each), seed=each, size=64)
        for row in csv.DictReader((made / "manifest.csv").open()):
            for file, part in ((row["image"], ""), (row.get("alpha"), "alphas")):
                if file:
                    target = folder / "photos" / name / part / row["category"] / Path(row["image"]).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (made / file).rename(target.with_suffix(Path(file).suffix))
    shutil.copy(next((folder / "photos" / "more" / "pets").iterdir()), folder / "holiday.jpg")
    return folder


@dataclass(frozen=True)
class House:
    """A folder in which README was followed to its end, and the folder of the served `mm`."""

    folder: Path
    programs: Path

    def run_blocks(self, page: Path) -> int:
        """Run the `sh` and `python` blocks of a page in order, as a person types them at a terminal.

        Each line of `sh` and each block of `python` must succeed. `~` is the folder; a question is answered by yes.
        What README ran there is not run again for another page: the guide begins with README's first cycle.

        Returns:
            How many lines and blocks ran.
        """
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("MM_", "MLFLOW_", "DAGSTER_"))}
        environment |= {
            "PATH": os.pathsep.join([str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "MM_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "PYTHONPATH": str(PROJECT),
        }
        (self.folder / "dagster").mkdir(exist_ok=True)
        known = [] if page == README else commands(README)
        new = [command for command in commands(page) if command not in known]
        for command in new:
            keyboard, terminal = os.openpty()
            os.write(keyboard, b"y\n")
            done = subprocess.run(
                command, cwd=self.folder, env=environment, stdin=terminal, capture_output=True, text=True
            )
            os.close(keyboard)
            os.close(terminal)
            assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return len(new)


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's `sh` and `python` blocks, but for those that say why they are not run."""
    made: list[list[str]] = []
    for block in blocks(page):
        if block["language"] == "sh" and not block["why"]:
            made += [["bash", "-c", line] for line in block["text"].splitlines()]
        elif block["language"] == "python" and not block["why"]:
            made.append([sys.executable, "-c", block["text"]])
    return made


@pytest.fixture(scope="module")
def read_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = make_house(tmp_path_factory.mktemp("readme"))
    with serve_mm(PROJECT) as programs:
        house = House(folder, programs)
        assert house.run_blocks(README) >= 6
        yield house


@pytest.mark.timeout(1800)
def test_the_readmes_commands_run_on_the_layout_that_it_shows(read_house: House) -> None:
    status = subprocess.run(
        [sys.executable, "-m", "mm_core", "status", "--json"],
        cwd=read_house.folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(status.stdout)
    # Two generated photos of 64 px may look alike, and the second is then refused as the first one saved again.
    assert LABELLED * len(ALL_CATEGORIES) - 2 <= counts["labelled"] and counts["verdict"] == "PROMOTE"
    assert {row["category"] for row in counts["samples"]} == set(ALL_CATEGORIES)
    assert {path.name for path in (read_house.folder / "out").iterdir()} == {"holiday.png", "holiday.cutout.png"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("page", "lines", "made"),
    [
        (DATA, 5, ["exported", "for-coco", "for-fiftyone", "page.html"]),
        (LABELLING, 3, ["data/labels"]),
        (MLFLOW, 2, ["data/mlflow/mlflow.db"]),
    ],
    ids=lambda value: getattr(value, "stem", None),
)
def test_the_commands_of_other_pages_run_after_those_of_readme(
    page: Path, lines: int, made: list[str], read_house: House
) -> None:
    assert read_house.run_blocks(page) == lines
    assert [name for name in made if not (read_house.folder / name).exists()] == []


@pytest.mark.timeout(1800)
def test_the_guides_commands_run(read_house: House) -> None:
    """After the other pages' commands, as its last section forgets a photo."""
    folder = read_house.folder
    assert read_house.run_blocks(GUIDE) >= 14
    assert (folder / "restored" / "inputs.json").is_file()
    samples = Catalog(str(folder / "data" / "store")).read("samples")
    assert sha256_file(folder / "holiday.jpg") not in set(samples["id"]), "the last section forgets it"


def test_readme_names_every_category_and_every_page() -> None:
    text = README.read_text()
    assert not [name for name in ALL_CATEGORIES if f"`{name}`" not in text]
    assert not [page.name for page in DOCS if f"docs/{page.name}" not in text]


def test_what_is_not_run_says_why_and_where_it_is_run() -> None:
    """`text` is no code. The guide's `yaml` and the list of commands have tests of their own, below."""
    for page in PAGES:
        for block in blocks(page):
            assert block["language"] in ("sh", "yaml", "python", "text"), f"{page.name}: {block['text'][:40]}"
            if block["language"] in ("sh", "python"):
                assert block["why"] or page in (README, GUIDE, DATA, LABELLING, MLFLOW), f"{page}: {block['text'][:40]}"
            if block["why"]:
                tests = re.findall(r"tests/\S+\.py", block["why"])
                assert tests and all((PROJECT / test).is_file() for test in tests), f"{page.name}: {block['why']}"


def test_the_list_of_commands_has_verbs_and_options_that_there_are() -> None:
    (block,) = blocks(PROJECT / "docs" / "commands.md")
    commands = [
        command for line in block["text"].splitlines() for command in re.split(r"; (?=mm )", line.partition("  #")[0])
    ]
    assert len(commands) >= 20
    for command in commands:
        # With --help a command is parsed and not run.
        done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--help"])
        assert command.startswith("mm ") and done.exit_code == 0, f"{command}\n{done.output}"


def test_the_parameters_of_the_guide_are_taken_as_it_writes_them() -> None:
    config, params = (yaml.safe_load(block["text"]) for block in blocks(GUIDE) if block["language"] == "yaml")
    for job in ("arrivals", "retrain"):
        assert dg.validate_run_config(defs.resolve_job_def(job), config)
    semi = Params.model_validate(params).train.semi
    assert semi.model_dump(mode="json", include=set(params["train"]["semi"])) == params["train"]["semi"]


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
        for target in LINK.findall(page.read_text()):
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
