"""infra/: pinned, unprivileged, on loopback, without a secret; what is said twice is equal; the rights are enough."""

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from botocore.exceptions import ClientError

from mm_core.storage.catalog import Catalog
from mm_core.storage.store import open_store, put_blob

PROJECT = Path(__file__).resolve().parent.parent
INFRA = PROJECT / "infra"
COMPOSE = (INFRA / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
INSTANCE: dict[str, Any] = yaml.safe_load((INFRA / "dagster.yaml").read_text())
HELM: dict[str, Any] = yaml.safe_load((INFRA / "helm" / "values.yaml").read_text())


def test_every_image_is_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(), re.M)
    images = {*bases, *(service["image"] for service in SERVICES.values())}
    for image in images:
        tag = image.partition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+|\d+\.\d+-|RELEASE\.\d{4}-\d\d-\d\d", tag), image
        # Our own image is built here; whoever pushes it knows its digest.
        if image != SERVICES["code"]["image"]:
            assert re.search(r"@sha256:[0-9a-f]{64}$", image), image


def test_only_loopback_is_published_and_nothing_has_privileges() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert not service.get("privileged") and "docker.sock" not in json.dumps(service), name
        if name != "s3-setup":
            assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name


def test_secrets_come_from_the_environment_alone() -> None:
    """No password, key or token has a value here; each is in .env.example, empty."""
    example = dict(line.split("=", 1) for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line[:40])
    example = {name: value for name, value in example.items() if not name.startswith("#")}
    assert set(re.findall(r"\$\{([A-Z_]+)", COMPOSE)) == set(example)
    for name, value in example.items():
        assert not value or name == "AWS_DEFAULT_REGION", name
    assert all(name in example for names in NEEDED.values() for name in names)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|KEY|TOKEN|SECRET|DATABASES|URI", name) and "TRACKING" not in name:
                assert "${" in value or value in ("true", "false"), name


S3_KEY = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
MINIO_ROOT = {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
USERS = ("dagster", "mlflow", "labelstudio")
NEEDED: dict[str, set[str]] = {
    "postgres": {"POSTGRES_PASSWORD", *(f"{user.upper()}_PG_PASSWORD" for user in USERS)},
    "s3": MINIO_ROOT,
    "s3-setup": MINIO_ROOT | S3_KEY,
    "mlflow": {"MLFLOW_PG_PASSWORD"} | S3_KEY,
    "label-studio": {
        "LABELSTUDIO_PG_PASSWORD", "LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD", "LABEL_STUDIO_API_KEY"
    },
    "code": {"DAGSTER_PG_PASSWORD", "LABEL_STUDIO_API_KEY", "MM_SIGNING_KEY", "MM_WEBHOOK_URL"} | S3_KEY,
    "daemon": {"DAGSTER_PG_PASSWORD"},
    "webserver": {"DAGSTER_PG_PASSWORD"},
    "pages": set(),
    "backup": {*(f"{user.upper()}_PG_PASSWORD" for user in USERS)} | S3_KEY,
}  # fmt: skip
ADDRESSES = {"MM_DAGSTER_URL", "MM_PAGES_URL", "LABEL_STUDIO_HOST", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"}
NO_SECRETS = {"AWS_DEFAULT_REGION", "MM_TIME_ZONE", "MM_ALLOWED_HOSTS"} | ADDRESSES


def test_a_service_gets_the_secrets_that_it_uses_and_no_others() -> None:
    given = {name: set(re.findall(r"\$\{([A-Z0-9_]+)", json.dumps(service))) for name, service in SERVICES.items()}
    assert {name: found - NO_SECRETS for name, found in given.items()} == NEEDED


def test_each_address_that_a_link_or_a_page_of_a_service_uses_can_be_a_public_one() -> None:
    """In compose `.env` sets it; on Kubernetes values.yaml has it, for the code location and for the runs."""
    code = SERVICES["code"]["environment"]
    for name in ADDRESSES - {"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"}:
        assert re.fullmatch(rf"\$\{{{name}:-http://127\.0\.0\.1:\d+\}}", code[name]), name
        default = code[name].partition(":-")[2].rstrip("}")
        assert HELM["dagster-user-deployments"]["deployments"][0]["env"][name] == default
        assert f"{name}={default}" in HELM["runLauncher"]["config"]["k8sRunLauncher"]["envVars"]
    for name in ("webserver", "pages"):
        assert SERVICES[name]["environment"]["MM_ALLOWED_HOSTS"] == "${MM_ALLOWED_HOSTS:-}", name
    mlflow, labels = SERVICES["mlflow"], SERVICES["label-studio"]["environment"]
    assert mlflow["command"][-1].endswith(",${MM_ALLOWED_HOSTS:-}")
    assert mlflow["environment"]["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "${MLFLOW_SERVER_CORS_ALLOWED_ORIGINS:-}"
    assert {labels["LABEL_STUDIO_HOST"], labels["CSRF_TRUSTED_ORIGINS"]} == {"${LABEL_STUDIO_HOST:-}"}


def test_each_service_has_a_database_user_that_reaches_no_other_database(postgres: str) -> None:
    """infra/postgres/init.sh on a real server; run again it changes nothing but passwords."""
    host, port = postgres.rpartition("@")[2].split(":")
    passwords = {f"{user.upper()}_PG_PASSWORD": f"it's {user}" for user in USERS}
    environment = os.environ | passwords | {"PGHOST": host, "PGPORT": port, "POSTGRES_USER": "mm"}

    def psql(user: str, database: str, sql: str) -> subprocess.CompletedProcess[str]:
        command = ["psql", "-qtA", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database, "-c", sql]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    try:
        for _ in range(2):
            done = subprocess.run([INFRA / "postgres" / "init.sh"], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        for user in USERS:
            assert psql(user, user, "CREATE TABLE IF NOT EXISTS t (n int); DROP TABLE t").returncode == 0
            for other in (*USERS, "postgres"):
                assert other == user or "permission denied" in psql(user, other, "SELECT 1").stderr
        rights = "SELECT count(*) FROM pg_authid WHERE rolname IN ('dagster', 'mlflow', 'labelstudio')"
        rights += " AND rolpassword LIKE 'SCRAM-SHA-256$%' AND NOT (rolsuper OR rolcreatedb OR rolcreaterole)"
        assert psql("mm", "postgres", rights).stdout.strip() == "3"
        empty = environment | {"MLFLOW_PG_PASSWORD": ""}
        refused = subprocess.run([INFRA / "postgres" / "init.sh"], env=empty, capture_output=True, text=True)
        assert refused.returncode == 1 and "mlflow is empty" in refused.stderr
    finally:
        psql("mm", "postgres", "GRANT ALL ON DATABASE postgres TO PUBLIC")
        for user in USERS:
            psql("mm", "postgres", f"DROP DATABASE IF EXISTS {user}")
            psql("mm", "postgres", f"DROP ROLE IF EXISTS {user}")


def test_on_kubernetes_and_in_compose_dagster_s_server_is_the_guarded_one() -> None:
    assert SERVICES["webserver"]["command"][:3] == ["python", "-m", "pipelines.webserver"]
    (run,) = [words for name, words in instructions() if name == "RUN" and "dagster-webserver" in words]
    assert 'python -m pipelines.webserver "$@"' in run
    for part in ("dagsterWebserver", "dagsterDaemon"):
        assert f"{HELM[part]['image']['repository']}:{HELM[part]['image']['tag']}" == SERVICES["code"]["image"]
    assert "dagster-webserver" not in COMPOSE.replace("# ", "")


def test_the_image_is_built_from_files_that_are_there_by_a_user_without_rights() -> None:
    text = (INFRA / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", text, re.M) == ["10001:10001"]
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for source in line.split():
            assert (PROJECT / source).exists(), source
            assert any(fnmatch.fnmatch(source, f"{top}*") for top in allowed), source


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line]


def test_the_dockerfile_is_made_of_known_instructions_and_installs_nothing_unpinned() -> None:
    for name, arguments in instructions():
        assert name in {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "CMD"}, name
        if name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", arguments]).returncode == 0, arguments
            assert not re.search(r"curl|wget|chmod 0?777|sudo", arguments)
            for installed in re.findall(r"(?:pip install|make_env.py \S+) ([^&]+)", arguments):
                words = installed.split()
                assert set(words) <= {"-r", "-c", *re.findall(r"/build/\S+", installed)}
                # Lists without versions are pinned by the lock: tests/test_environment.py holds that it names all.
                if any(word.endswith(".in") for word in words):
                    assert words[:2] == ["-c", "/build/requirements.lock"]
        if name == "CMD":
            json.loads(arguments)


def test_what_the_image_holds_is_enough_for_its_commands(tmp_path: Path) -> None:
    """Its files, its `mm` and its environment in another folder: the command works, and is the image's own code."""
    app, programs = tmp_path / "app", tmp_path / "opt" / "mm" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    here = {"/app": str(app), "/opt/mm": str(programs.parent), "/data": str(tmp_path / "data")}
    environment = {"SYSTEMROOT": "", "LANG": "C.UTF-8"}
    ran = []
    for name, arguments in instructions()[[name for name, _ in instructions()].index("WORKDIR") :]:
        for there, mine in here.items():
            arguments = re.sub(rf"(?<![\w.])({re.escape(there)})(?=[\s/:\"]|$)", mine, arguments)
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                place = app / target / (Path(source).name if target.endswith("/") else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (PROJECT / source).is_dir() else shutil.copyfile)(PROJECT / source, place)
        elif name == "RUN":
            subprocess.run(["sh", "-c", arguments.partition("&& install -d")[0]], check=True)
        elif name == "ENV":
            words = dict(word.split("=", 1) for word in arguments.split())
            environment |= {n: v.replace("$PATH", os.environ["PATH"]) for n, v in words.items()}
        elif name == "CMD":
            ran.append(json.loads(arguments))
    loaded = "import pipelines, mm_core; print(pipelines.__file__, mm_core.__file__)"
    (tmp_path / "data").mkdir()
    for command in [*ran, ["mm", "params"], ["mm", "status", "--json"], ["python", "-c", loaded]]:
        done = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-800:]}"
    assert done.stdout.split() == [str(app / room / "__init__.py") for room in ("pipelines", "mm_core")]
    validate = ["python", "-m", "dagster", "definitions", "validate", "-m", "pipelines.definitions"]
    home = {"DAGSTER_HOME": str(tmp_path / "data")}
    done = subprocess.run(validate, cwd=app, env=environment | home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]


def test_compose_yaml_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    check = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, INFRA / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.replace("depends_on:", "depends-on:"))
    assert subprocess.run([*check, broken], capture_output=True).returncode == 1


def test_every_service_that_is_waited_for_is_there_and_says_when_it_is_ready() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert SERVICES[other].get("healthcheck") or other == "label-studio", other
    volumes = {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", []) if not v.startswith(".")}
    assert volumes == set(yaml.safe_load(COMPOSE)["volumes"])
    setup = (INFRA / "s3" / "setup.sh").read_text()
    assert subprocess.run(["sh", "-n"], input=setup, text=True).returncode == 0
    assert set(re.findall(r"/setup/(\S+\.json)", setup)) == {path.name for path in (INFRA / "s3").glob("*.json")}


def test_on_postgres_the_instance_is_the_same_but_for_its_storage(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = yaml.safe_load((INFRA / "dagster.postgres.yaml").read_text())
    storage = other.pop("storage")
    assert other == INSTANCE
    host, port = postgres.rpartition("@")[2].split(":")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({**other, "storage": storage}))
    for name, value in {"HOST": host, "PORT": port, "DB": "postgres", "USER": "mm", "PASSWORD": "unused"}.items():
        monkeypatch.setenv(f"DAGSTER_PG_{name}", value)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert "Postgres" in type(instance.event_log_storage).__name__
        assert instance.global_op_concurrency_default_limit == 1
        instance.add_dynamic_partitions("batches", ["unlabeled/w01"])
        assert instance.get_dynamic_partitions("batches") == ["unlabeled/w01"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """An S3 server that holds callers to their rights, with both buckets and the engine's user; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setup = 5  # calls below that nobody's rights are asked for
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(setup)}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        root = {"endpoint_url": address, "aws_access_key_id": "r", "aws_secret_access_key": "r"}
        s3, iam = (boto3.client(name, region_name="us-east-1", **root) for name in ("s3", "iam"))
        for bucket in ("matting", "matting-inbox"):
            s3.create_bucket(Bucket=bucket)
        iam.create_user(UserName="engine")
        policy = (INFRA / "s3" / "policy.json").read_text()
        iam.put_user_policy(UserName="engine", PolicyName="engine", PolicyDocument=policy)
        key = iam.create_access_key(UserName="engine")["AccessKey"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_engines_rights_are_enough_for_store_and_catalog(guarded: str, tmp_path: Path) -> None:
    store = open_store("s3://matting/store", tmp_path)
    digest = put_blob(store, b"a photo")
    assert store.fetch(f"blobs/{digest[:2]}/{digest[2:4]}/{digest}").read_bytes() == b"a photo"
    assert [entry.size for entry in store.list("blobs")] == [7]
    catalog = Catalog("s3://matting/store")
    row = {"id": "a", "sample_id": "s", "version": 1, "origin": "drop"}
    assert catalog.add("labels", [row]) == 1 and catalog.add("labels", [row, {**row, "id": "b"}]) == 1
    assert sorted(catalog.read("labels")["id"]) == ["a", "b"]
    store.delete(f"blobs/{digest[:2]}/{digest[2:4]}/{digest}")
    assert [*open_store("s3://matting-inbox", tmp_path).list()] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda s3: s3.put_object(Bucket="matting-inbox", Key="k", Body=b""),
        lambda s3: s3.delete_object(Bucket="matting-inbox", Key="k"),
        lambda s3: s3.delete_bucket(Bucket="matting"),
        lambda s3: s3.create_bucket(Bucket="mine"),
        lambda s3: s3.put_bucket_lifecycle_configuration(Bucket="matting", LifecycleConfiguration={"Rules": []}),
        lambda s3: s3.list_buckets(),
    ],
)
def test_the_engine_may_do_no_more(guarded: str, call) -> None:
    with pytest.raises(ClientError) as caught:
        call(boto3.session.Session().client("s3"))
    assert caught.value.response["Error"]["Code"] == "AccessDenied"


@pytest.mark.parametrize("name", ["lifecycle.json", "lifecycle-inbox.json"])
def test_lifecycle_rules_are_taken_by_s3_and_never_expire_what_is_current(bucket: str, name: str) -> None:
    rules = json.loads((INFRA / "s3" / name).read_text())
    client, place = boto3.session.Session().client("s3"), bucket.removeprefix("s3://")
    client.put_bucket_lifecycle_configuration(Bucket=place, LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket=place)["Rules"]
    assert [rule["ID"] for rule in kept] == [rule["ID"] for rule in rules["Rules"]]
    if name == "lifecycle.json":  # blobs, catalog and artifacts are read for years
        assert not any("Expiration" in rule for rule in rules["Rules"])
