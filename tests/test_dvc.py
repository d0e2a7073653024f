"""`dvc repro` for real, in a git repository of its own: the cycle runs once, and again only where something changed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser

from mm_core import stages
from mm_core.core.code_digest import first_party_closure, source_path
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, sha256_file
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from samplegen import write_drop
from tests.mm_server import serve_mm
from tests.tiny import link_graphs

PROJECT = Path(__file__).resolve().parent.parent
DVC = PROJECT / ".tools" / "dvc" / "bin" / "dvc"
STAGES: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
TINY: dict[str, Any] = {
    "model.encoder": "test_efficientnet",
    "model.pretrained": "",
    "split.min_hard": 0,
    "model.size": 64,
    "model.width": 8,
    "train.common.batch": 2,
    "train.common.precision": "fp32",
    "train.simple.steps": 2,
    "train.hard.steps": 1,
    "train.semi.steps": 1,
    "train.multimodal.steps": 1,
    "train.multimodal.consistency": 1.0,
    "train.multimodal.contrastive": 0.1,
    "train.multimodal.captioned": 0.5,
    "clip.steps": 1,
    "evaluate.max_side": 64,
    "export.calibration_images": 2,
    "gate.min_images": 2,
    "gate.beat_blind": False,
    "gate.resamples": 200,
}
RUN = list(STAGES)
"""What `dvc repro` runs of a fresh workspace."""
needs_dvc = pytest.mark.skipif(not DVC.exists(), reason=f"{DVC} is missing: `make setup` installs DVC")


def flat(values: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
    return found


def under(sections: list[str]) -> set[str]:
    """All parameters under the dotted names."""
    return {
        name for name in flat(Params().model_dump(mode="json")) if any(f"{name}.".startswith(f"{s}.") for s in sections)
    }


@pytest.mark.parametrize("stage", TRAIN_STAGES)
def test_a_training_stage_lists_the_params_that_its_weights_depend_on(stage: str) -> None:
    from mm_core.training.stage import _relevant

    assert under(STAGES[f"train-{stage}"]["params"]) == flat(_relevant(stage, Params()))


def test_every_param_of_the_cycle_is_listed_by_some_stage() -> None:
    listed = under([name for stage in STAGES.values() for name in stage.get("params", [])])
    per_arrival = under(["ingest", "structure", "drift", "route", "label", "moments"]) - under(
        ["label.compare_seeds", "label.compare_share"]
    )
    assert flat(Params().model_dump(mode="json")) - listed == per_arrival


def test_paths_are_those_of_the_layout() -> None:
    layout = Layout(Settings.from_env(PROJECT / "data"))
    # An out with options is a mapping of one key.
    outs = {
        name: [str(PROJECT / (out if isinstance(out, str) else next(iter(out)))) for out in stage["outs"]]
        for name, stage in STAGES.items()
    }
    expected = {
        "pin-inputs": [layout.inputs],
        "snapshot": [layout.snapshot, layout.stage_report("snapshot")],
        "split": [layout.split, layout.stage_report("split")],
        **{f"train-{s}": [layout.model(s).parent, layout.stage_report(f"train-{s}")] for s in TRAIN_STAGES},
        "evaluate": [layout.evaluation, layout.headline, layout.quantised, layout.stage_report("evaluate")],
        "gate": [layout.verdict.parent, layout.stage_report("gate")],
        "label-compare": [layout.stage_report("label-compare")],
        "export": [layout.cycle_bundle],
    }
    assert outs == {name: [str(path) for path in paths] for name, paths in expected.items()}


def test_code_that_a_stage_depends_on_exists() -> None:
    for stage in STAGES.values():
        for dep in stage.get("deps", ()):
            assert dep.startswith("data/") or (PROJECT / dep).exists(), dep


def test_the_code_of_dvc_yaml_is_what_the_entry_modules_import() -> None:
    spec = importlib.util.spec_from_file_location("dvc_deps", PROJECT / "infra" / "dvc_deps.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (PROJECT / "dvc.yaml").read_text()
    assert script.with_code_deps(text) == text, "run `python infra/dvc_deps.py`"
    assert set(script.ENTRY_MODULES) == set(STAGES) - {"pin-inputs"}
    for stage, modules in script.ENTRY_MODULES.items():
        listed = [PROJECT / dep for dep in script.code_deps(stage)]
        for module in first_party_closure(*modules):
            file = source_path(module)
            assert any(file == path or path in file.parents for path in listed), (stage, file)
    # A new import shows: the text without one of its lines is not up to date.
    assert script.with_code_deps(text.replace("      - mm_core/training\n", "", 1)) == text


class Repository:
    """A git repository with the project's code, DVC's files and a workspace of generated samples."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = [str(Path(sys.executable).parent), str(DVC.parent), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "MLFLOW_"))}
        self.environment = kept | {
            "PATH": os.pathsep.join(self.paths),
            "PYTHONPATH": str(root),
            "MM_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",  # tiny tensors: more threads only wait for each other
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@localhost",
        }
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, root / name)
        for package in ("mm_core", "samplegen"):
            shutil.copytree(PROJECT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.run("git", "init", "-q")

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write_params(self, **values: Any) -> None:
        (self.root / "params.yaml").write_text(Params().with_values(**(TINY | values)).to_yaml())

    def repro(self) -> list[str]:
        """The stages that ran, in order."""
        out = self.run("dvc", "repro")
        return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage '")]

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "a cycle")


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path], kept_graphs: Path
) -> Iterator[Repository]:
    """A repository with pinned inputs. Its `mm` comes from a server; a fresh clone below has `mm` itself."""
    made = Repository(tmp_path_factory.mktemp("repository"))
    link_graphs(with_tables(made.root / "data"), kept_graphs)
    made.write_params()
    inbox = made.root / "data" / "inbox"
    each: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, 2)
    write_drop(inbox, "pixel_labeled", "eval", each, seed=1, size=64, role="eval")
    write_drop(inbox, "pixel_labeled", "w01", dict.fromkeys(ALL_CATEGORIES, 3), seed=2, size=64, role="train")
    write_drop(inbox, "unlabeled", "w01", dict.fromkeys(ALL_CATEGORIES, 1), seed=3, size=64)
    write_drop(inbox, "text_image", "w01", dict.fromkeys(ALL_CATEGORIES, 1), seed=4, size=64)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MM_STORE", "MM_INBOX", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        layout = Layout(Settings.from_env(made.root / "data"))
        params = Params.load(made.root / "params.yaml")
        stages.ingest(Run(params, layout))
        stages.structure(Run(params, layout))
        stages.pin_inputs(Run(params, layout))
    with serve_mm(made.root) as programs:
        made.environment["PATH"] = os.pathsep.join([str(programs), *made.paths])
        yield made


@needs_dvc
@pytest.mark.timeout(900)
def test_repro_runs_what_changed_and_nothing_else(repository: Repository) -> None:
    assert sorted(repository.repro()) == sorted(RUN)
    refusal = json.loads((repository.root / "data/cycle/export/export.json").read_text())
    assert refusal
    repository.commit()
    assert "data/cycle" not in repository.run("git", "ls-files")
    assert repository.repro() == []

    repository.write_params(**{"gate.alpha": 0.1})
    assert repository.repro() == ["gate", "export"]

    shown = json.loads(repository.run("dvc", "metrics", "diff", "--all", "--json"))
    assert {name.partition(".json.")[2] for name in flat(shown) if name.endswith(".new")} == {
        f"mse.{name}.new" for name in ("macro", *CATEGORIES)
    }, shown
    table = json.loads((repository.root / "data/cycle/evaluation/metrics.json").read_text())
    assert table["multimodal"]["portrait"]["mse"] > 0, "the whole table stays beside it"


@needs_dvc
@pytest.mark.timeout(900)
def test_what_dvc_prints_fits_a_screen(repository: Repository) -> None:
    repository.commit()
    repository.run("dvc", "exp", "run", "-n", "stricter", "-S", "gate.alpha=0.2")
    for command in (
        ["metrics", "show"],
        ["metrics", "diff", "--all"],
        ["exp", "show", "--only-changed", "--no-pager"],
    ):
        lines = repository.run("dvc", *command).splitlines()
        assert lines and max(map(len, lines)) <= 140, "\n".join(lines)


@needs_dvc
@pytest.mark.timeout(900)
def test_the_page_of_plots_needs_no_network(repository: Repository, browser: Browser) -> None:
    address = repository.run("dvc", "plots", "show", "-o", "plots").strip()
    page = Path(address.removeprefix("file://"))
    assert re.findall(r"https?://[^\"' )]*", page.read_text()) == []
    context = browser.new_context(offline=True)
    try:
        tab = context.new_page()
        tab.goto(address)
        widths = tab.evaluate("Array.from(document.images, image => image.naturalWidth)")
        assert len(widths) == 2 and min(widths) > 200
    finally:
        context.close()


@needs_dvc
def test_a_fresh_clone_says_what_to_do(tmp_path: Path) -> None:
    """No workspace, no photos: one error, by the first stage, with its remedies."""
    fresh = Repository(tmp_path)
    fresh.write_params()
    done = subprocess.run(["dvc", "repro"], cwd=fresh.root, env=fresh.environment, capture_output=True, text=True)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Running stage 'pin-inputs'" in text and "Running stage 'snapshot'" not in text
    (said,) = [line for line in text.splitlines() if line.startswith("mm: ")]
    assert "`mm drop" in said and "`dvc pull`" in said
    assert not (fresh.root / "data" / "inputs.json").exists()


@needs_dvc
@pytest.mark.timeout(900)
def test_an_experiment_changes_one_param_and_runs_what_depends_on_it(repository: Repository) -> None:
    repository.commit()
    out = repository.run("dvc", "exp", "run", "-n", "slower", "-S", "train.multimodal.lr=0.0002")
    ran = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage '")]
    assert ran == ["train-multimodal", "evaluate", "gate", "export"]
    assert Params.load(repository.root / "params.yaml").train.multimodal.lr == 0.0002
    assert "slower" in repository.run("dvc", "exp", "list", "--name-only")
    trained = json.loads((repository.root / "data/cycle/reports/train-multimodal.json").read_text())
    assert "reused" not in trained["facts"]


@needs_dvc
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_run(repository: Repository) -> None:
    (block,) = re.findall(r"```sh\n(dvc .*?)```", (PROJECT / "docs" / "mlflow-and-dvc.md").read_text(), re.S)
    repository.commit()
    outputs = [repository.run(*line.split()) for line in block.splitlines()]
    assert len(outputs) == 5 and "Running stage 'train-simple'" in outputs[1]
    assert Params.load(repository.root / "params.yaml").train.simple.lr == 0.004


@needs_dvc
def test_a_param_that_there_is_not_is_refused_before_anything_runs(repository: Repository) -> None:
    before = (repository.root / "params.yaml").read_bytes()
    command = ["dvc", "exp", "run", "-S", "train.lr=0.1"]
    done = subprocess.run(command, cwd=repository.root, env=repository.environment, capture_output=True, text=True)
    assert done.returncode != 0 and "Could not override 'train.lr'" in done.stderr
    assert (repository.root / "params.yaml").read_bytes() == before and "Running stage" not in done.stdout


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the commands of `Repository` have: sums in another order have other last bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_dvc
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_what_dagster_trained_is_pulled_elsewhere_and_trained_again_to_the_same_bytes(
    repository: Repository, bucket: str, tmp_path: Path, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a remote on S3: `dvc repro` in the clone has nothing to do, and what is forced gives Dagster's digest."""
    import dagster as dg

    from pipelines.definitions import defs

    for name, value in {"MM_WORKSPACE": repository.root / "data", "MM_PARAMS": repository.root / "params.yaml"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MM_DEVICE", "cpu")
    repository.write_params(**{"train.multimodal.lr": 0.0007})
    assert defs.resolve_job_def("retrain").execute_in_process(instance=dg.DagsterInstance.ephemeral()).success
    made = {stage: sha256_file(Layout(Settings.from_env()).model(stage)) for stage in TRAIN_STAGES}
    repository.run("mm", "export", "--if-promoted")  # Dagster skips what was refused; DVC wants it said
    repository.run("dvc", "commit", "-f")
    assert repository.repro() == []
    repository.run("dvc", "remote", "add", "-d", "-f", "s3", f"{bucket}/dvc")
    repository.run("dvc", "remote", "modify", "s3", "endpointurl", s3_address)
    repository.environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    repository.run("dvc", "push")
    repository.commit()

    clone = Repository.__new__(Repository)
    clone.root = tmp_path / "clone"
    clone.environment = repository.environment | {
        "PATH": os.pathsep.join(repository.paths),
        "PYTHONPATH": str(clone.root),
        "MM_STORE": str(repository.root / "data" / "store"),
    }
    repository.run("git", "clone", "-q", str(repository.root), str(clone.root))
    clone.run("dvc", "pull")
    assert clone.repro() == []
    layout = Layout(Settings.from_env(clone.root / "data"))
    assert {stage: sha256_file(layout.model(stage)) for stage in TRAIN_STAGES} == made
    assert not layout.checkpoints.exists(), "or nothing would be trained"
    clone.run("dvc", "repro", "-s", "-f", "train-multimodal")
    assert sha256_file(layout.model("multimodal")) == made["multimodal"]
    assert "reused" not in json.loads(layout.stage_report("train-multimodal").read_text())["facts"]
