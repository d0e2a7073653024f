"""infra/helm: every object is valid, pods get what they need and no more, and settings equal those of one machine."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml

from pipelines.definitions import defs
from tests import kubernetes
from tests.kubernetes import VALUES, Manifest

INFRA = kubernetes.PROJECT / "infra"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
INSTANCE: dict[str, Any] = yaml.safe_load((INFRA / "dagster.yaml").read_text())
LAUNCHER: dict[str, Any] = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
RELEASES = ("1.30", "1.33")
"""Kubernetes releases whose schemas the objects are checked against."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[kubernetes.Cluster]:
    with kubernetes.Cluster() as made:
        yield made


@pytest.fixture(scope="module")
def instance(cluster: kubernetes.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """Dagster with the chart's settings, on sqlite; it reads and checks each of them."""
    home = tmp_path_factory.mktemp("home")
    settings = kubernetes.instance_settings(cluster.write_kubeconfig(home / "kubeconfig"))
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(home)) as made:
        yield made


@pytest.fixture(scope="module")
def pods(cluster: kubernetes.Cluster, instance: dg.DagsterInstance) -> dict[str, Manifest]:
    """The Kubernetes job of a run of each job; `photos_to_people` is a run of single assets that the sensor starts."""
    repository = kubernetes.definitions_in_a_pod().get_repository_def()
    made = {}
    for job in repository.get_all_jobs():
        kubernetes.launch(instance, job, {})
        made[job.name] = cluster.jobs[-1]
    sensor = repository.get_sensor_def("photos_to_people")
    assert isinstance(sensor, dg.AutomationConditionSensorDefinition)
    kubernetes.launch(instance, repository.get_implicit_global_asset_job_def(), dict(sensor.run_tags))
    return made | {sensor.name: cluster.jobs[-1]}


def container_of(manifest: Manifest) -> Manifest:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return container


def secrets_of(value: object) -> set[str]:
    """Names of all secrets that an object mentions: as environment, as a volume, or as credentials of an image."""
    if isinstance(value, list):
        return {name for inner in value for name in secrets_of(inner)}
    if not isinstance(value, dict):
        return set()
    found = {name for inner in value.values() for name in secrets_of(inner)}
    for key in ("secretRef", "secretKeyRef", "secret"):
        if key in value:
            found.add(value[key].get("name") or value[key]["secretName"])
    return found | {secret["name"] for secret in value.get("imagePullSecrets") or ()}


def environment_of(manifest: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container_of(manifest)["env"] if "value" in entry}


def assert_valid(objects: dict[str, Manifest]) -> None:
    for release, (name, manifest) in itertools.product(RELEASES, objects.items()):
        try:
            kubernetes_validate.validate(manifest, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {error.message}")


def test_every_object_is_valid(pods: dict[str, Manifest]) -> None:
    assert_valid(pods | kubernetes.chart_objects())


def test_the_schemas_refuse_a_word_that_kubernetes_does_not_know() -> None:
    broken = kubernetes.chart_objects()["Deployment/matting-pages"]
    broken = json.loads(json.dumps(broken).replace("volumeMounts", "volumeMount"))
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(broken, RELEASES[0], strict=True)


OF_ALL_RUNS = {"matting", "matting-postgres"}
TALK_TO_LABEL_STUDIO = {"route", "collect", "photos_to_people"}
WRITE_BUNDLES = {"retrain", "release"}


def test_a_pod_gets_the_secrets_that_it_needs_and_no_others(pods: dict[str, Manifest]) -> None:
    more = dict.fromkeys(WRITE_BUNDLES, {"matting-signing"}) | dict.fromkeys(
        TALK_TO_LABEL_STUDIO, {"matting-labelling"}
    )
    assert {name: secrets_of(pod) for name, pod in pods.items()} == {
        name: OF_ALL_RUNS | more.get(name, set()) for name in pods
    }
    assert set(pods) >= {"arrivals", "backup", "compact", "__ASSET_JOB"} | WRITE_BUNDLES | TALK_TO_LABEL_STUDIO
    others = {name: secrets_of(one) for name, one in kubernetes.chart_objects().items() if "Deployment" in name}
    assert others == {
        "Deployment/dagster-dagster-user-deployments-matting": OF_ALL_RUNS | {"matting-labelling", "matting-notices"},
        "Deployment/dagster-dagster-webserver": {"matting-postgres"},
        "Deployment/dagster-daemon": {"matting-postgres"},
        "Deployment/matting-pages": set(),
    }
    code = kubernetes.code_location()
    assert not code["includeConfigInLaunchedRuns"]["enabled"], "the runs would get the webhook's address"
    # What each secret must hold is said at the top of the values.
    said = (INFRA / "helm" / "values.yaml").read_text()
    named = set(re.findall(r"^#     (matting\S*) ", said, re.M))
    assert named == {*OF_ALL_RUNS, "matting-labelling", "matting-notices", "matting-signing"}


def test_neither_runs_nor_the_code_location_may_start_jobs(pods: dict[str, Manifest]) -> None:
    """Whoever may start a job reads any secret of the namespace: the job names it."""
    objects = kubernetes.chart_objects()
    assert {pod["spec"]["template"]["spec"]["serviceAccountName"] for pod in pods.values()} == {"matting-runs"}
    assert objects["ServiceAccount/matting-runs"]
    assert not [name for name in objects if name.startswith(("Role", "ClusterRole"))]
    # The chart gives its own account a role always, and that of the code location only by this value.
    assert VALUES["dagster-user-deployments"]["rbacEnabled"] is False
    assert objects["Deployment/matting-pages"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_no_container_opens_a_port_that_needs_root() -> None:
    for name, manifest in kubernetes.chart_objects().items():
        if "Deployment" in name:
            container = container_of(manifest)
            ports = [port["containerPort"] for port in container.get("ports", [])]
            assert all(port >= 1024 for port in ports), name
            # The chart does not change the port of a probe along with that of the service.
            probed = container.get("readinessProbe", {}).get("httpGet", {}).get("port")
            assert probed is None or [probed] == ports, name


def test_the_chart_s_own_templates_make_what_the_other_tests_check() -> None:
    rendered, expected = kubernetes.rendered_chart(), kubernetes.chart_objects()
    assert_valid(rendered)
    settings = yaml.safe_load(rendered["ConfigMap/dagster-instance"]["data"]["dagster.yaml"])
    # The way to the cluster differs, and the chart adds settings of its own.
    launcher = {"load_incluster_config": True, "kubeconfig_file": None}
    settings["run_launcher"]["config"] |= launcher
    for name, value in kubernetes.instance_settings(Path("kubeconfig")).items():
        if name == "run_launcher":
            value["config"] |= launcher
        assert settings[name] | value == settings[name], name
    for name in (name for name in expected if "Deployment" in name):
        ours, theirs = expected[name], rendered[name]
        # A secret for Celery, optional and not made.
        assert secrets_of(theirs) - {"dagster-celery-config-secret"} == secrets_of(ours), name
        for field in ("serviceAccountName", "securityContext"):
            specs = [one["spec"]["template"]["spec"].get(field) for one in (theirs, ours)]
            assert specs[0] == specs[1], (name, field)
        for field in ("image", "ports", "securityContext", "resources", "args"):
            assert (container_of(theirs).get(field) or {}) == (container_of(ours).get(field) or {}), (name, field)
    bindings = [one for one in rendered.values() if one["kind"].endswith("RoleBinding")]
    assert {subject["name"] for one in bindings for subject in one["subjects"]} == {"dagster"}


def test_only_training_asks_for_the_gpu_and_for_much_memory(pods: dict[str, Manifest]) -> None:
    asked = {name: container_of(pod)["resources"] for name, pod in pods.items()}
    assert asked.pop("retrain") == {
        "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
    }
    small = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    assert all(resources == small for resources in asked.values()), asked
    assert "gpu" not in json.dumps(kubernetes.chart_objects())


def test_runs_of_one_machine_have_no_tag_for_pods() -> None:
    """Dagster shows each tag in the list of runs and in the launchpad."""
    assert not [job.name for job in defs.get_repository_def().get_all_jobs() if "dagster-k8s/config" in job.tags]


def test_nothing_runs_as_root_and_all_of_it_is_our_image(pods: dict[str, Manifest]) -> None:
    deployed = [one for name, one in kubernetes.chart_objects().items() if "Deployment" in name]
    for manifest in (*pods.values(), *deployed):
        pod, container = manifest["spec"]["template"]["spec"], container_of(manifest)
        assert pod["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001
        }  # fmt: skip
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["image"] == SERVICES["code"]["image"]
    for manifest in pods.values():
        assert manifest["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        assert manifest["spec"]["ttlSecondsAfterFinished"] == 86_400
    assert kubernetes.code_location()["dagsterApiGrpcArgs"] == ["-m", "pipelines.definitions"]


def test_runs_and_code_location_work_in_the_same_place(pods: dict[str, Manifest]) -> None:
    code = kubernetes.chart_objects()["Deployment/dagster-dagster-user-deployments-matting"]
    for manifest in (code, *pods.values()):
        assert {"name": "workspace", "mountPath": "/data"} in container_of(manifest)["volumeMounts"]
        volumes = {one["name"]: one for one in manifest["spec"]["template"]["spec"]["volumes"]}
        assert volumes["workspace"]["persistentVolumeClaim"] == {"claimName": "matting-workspace"}
    of_code = kubernetes.code_location()["env"]
    for name, manifest in pods.items():
        environment = environment_of(manifest)
        assert of_code.items() <= environment.items()
        own = {"photos_to_people": "__ASSET_JOB"}.get(name, name)
        assert {*environment} - {*of_code} == {"DAGSTER_RUN_JOB_NAME", "DAGSTER_HOME"}
        assert environment["DAGSTER_RUN_JOB_NAME"] == own


def test_the_addresses_of_label_studio_pages_and_dagster_are_set_everywhere(pods: dict[str, Manifest]) -> None:
    for environment in (SERVICES["code"]["environment"], *map(environment_of, pods.values())):
        assert {"LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "MM_PAGES_URL", "MM_DAGSTER_URL"} <= set(environment)
    pages = kubernetes.chart_objects()["Deployment/matting-pages"]
    assert container_of(pages)["command"] == [*SERVICES["pages"]["command"]]


def test_the_settings_are_those_of_one_machine(instance: dg.DagsterInstance) -> None:
    settings = kubernetes.instance_settings(Path("kubeconfig"))
    # Each run is a pod there; on one machine two cores limit them.
    runs = settings["concurrency"]["runs"]
    assert (runs.pop("max_concurrent_runs"), INSTANCE["concurrency"]["runs"]["max_concurrent_runs"]) == (8, 2)
    runs["max_concurrent_runs"] = 2
    # A launcher of pods can start a lost worker again; one of processes cannot.
    assert settings["run_monitoring"].pop("max_resume_run_attempts") == 2
    for name in INSTANCE.keys() - {"run_launcher", "code_servers"}:
        assert settings[name] == INSTANCE[name], name
    # Dagster itself understood them.
    assert instance.run_monitoring_max_resume_run_attempts == 2 and instance.run_retries_max_retries == 2
    assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 8  # type: ignore[union-attr]
    assert instance.global_op_concurrency_default_limit == 1


def test_the_chart_knows_every_value() -> None:
    """Helm ignores unknown keys. The names are those of the chart's schema, version 1.13."""
    known = {
        *("dagsterWebserver", "dagster-user-deployments", "postgresql", "generatePostgresqlPasswordSecret", "global"),
        *("generateCeleryConfigSecret", "rabbitmq", "redis", "flower", "ingress", "imagePullSecrets", "scheduler"),
        *("computeLogManager", "runLauncher", "pythonLogs", "dagsterDaemon", "busybox", "migrate", "telemetry"),
        *("serviceAccount", "retention", "concurrency", "additionalInstanceConfig", "extraManifests"),
    }
    assert set(VALUES) <= known
    assert set(VALUES["global"]) <= {"postgresqlSecretName", "dagsterHome", "serviceAccountName"}
    for ticks in ("schedule", "sensor"):
        # A table replaces the chart's default of one number, and its schema has no optional entry.
        assert set(VALUES["retention"][ticks]["purgeAfterDays"]) == {"skipped", "failure", "success", "started"}
    for part in (kubernetes.code_location(), VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]):
        assert set(part["image"]) == {"repository", "tag", "pullPolicy"}
    assert not any("envSecrets" in VALUES[part] for part in ("dagsterWebserver", "dagsterDaemon"))


def test_the_launcher_in_the_image_is_the_tested_one_and_the_chart_has_dagster_s_version() -> None:
    locked = (kubernetes.PROJECT / "requirements.lock").read_text()
    versions = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", locked, re.M))
    assert versions["dagster-k8s"] == versions["dagster-postgres"]
    assert f"--version {versions['dagster']} " in (INFRA / "helm" / "values.yaml").read_text()
    assert "-r /build/k8s.in" in (INFRA / "Dockerfile").read_text()
