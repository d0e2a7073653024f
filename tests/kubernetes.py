"""What a cluster gets of infra/helm/values.yaml: Dagster's settings, the pods of runs, and the chart's deployments.

The chart's own files are no package of a registry, so most tests cannot run `helm template`. Pods of runs come from the
launcher of `dagster-k8s` itself, which talks to a server on loopback. The deployments and the settings are made here as
the templates of the chart make them. Where `helm` is installed and DAGSTER_CHART names the chart, `rendered_chart`
returns what the templates make.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
VALUES: dict[str, Any] = yaml.safe_load((PROJECT / "infra" / "helm" / "values.yaml").read_text())
NAMESPACE = "matting"
Manifest = dict[str, Any]


def snake(value: Any) -> Any:
    """Return a value of the chart with Dagster's names: `maxRetries` becomes `max_retries`."""
    if isinstance(value, dict):
        return {snake_name(name): snake(inner) for name, inner in value.items()}
    return [snake(inner) for inner in value] if isinstance(value, list) else value


def snake_name(name: str) -> str:
    """Return `maxRetries` as `max_retries`."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def code_location() -> dict[str, Any]:
    """Return the values of the one deployment with our code."""
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    return deployment


def image(part: dict[str, Any]) -> str:
    """Return the image of a part of the values."""
    return f"{part['image']['repository']}:{part['image']['tag']}"


def instance_settings(kubeconfig: Path) -> dict[str, Any]:
    """Return the chart's dagster.yaml, but for its storage and for the way to the cluster.

    Args:
        kubeconfig: A file that names the cluster; in a pod, Dagster finds its cluster by itself.
    """
    values = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    # The chart renames these entries and passes their content on.
    names = {
        "imagePullPolicy": "image_pull_policy",
        "envVars": "env_vars",
        "volumeMounts": "volume_mounts",
        "volumes": "volumes",
        "securityContext": "security_context",
        "failPodOnRunFailure": "fail_pod_on_run_failure",
    }
    config = {name: values[key] for key, name in names.items()}
    config |= {
        "job_namespace": NAMESPACE,
        "service_account_name": "dagster",
        "instance_config_map": "dagster-instance",
        "dagster_home": VALUES["global"]["dagsterHome"],
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "env_secrets": [secret["name"] for secret in values["envSecrets"]],
        "run_k8s_config": {snake_name(name): part for name, part in values["runK8sConfig"].items()},
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
    }
    assert {*names, "envSecrets", "runK8sConfig"} == set(values), "a value that is not passed on"
    concurrency, retention = snake(VALUES["concurrency"]), snake(VALUES["retention"])
    assert concurrency.pop("enabled") and retention.pop("enabled")
    return {
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config},
        "run_monitoring": snake(VALUES["dagsterDaemon"]["runMonitoring"]),
        "run_retries": snake(VALUES["dagsterDaemon"]["runRetries"]),
        "concurrency": concurrency,
        "retention": retention,
        "telemetry": VALUES["telemetry"],
        **VALUES["additionalInstanceConfig"],
    }


def definitions_in_a_pod() -> dg.Definitions:
    """Return the definitions as the code location of a cluster loads them."""
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "pipelines"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
            return importlib.import_module("pipelines.definitions").defs
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "pipelines"]:
            del sys.modules[name]
        sys.modules.update(before)


class Cluster(HTTPServer):
    """A Kubernetes API on loopback that takes jobs and answers with them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.jobs: list[Manifest] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the file that leads a client here; return its path."""
        named = {"name": "here"}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [named | {"cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
                    "contexts": [named | {"context": {"cluster": "here", "user": "here"}}],
                    "users": [named | {"user": {}}],
                }
            )
        )
        return path

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Take(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
        self.server.jobs.append(json.loads(body))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def launch(instance: dg.DagsterInstance, job: dg.JobDefinition, tags: dict[str, str]) -> None:
    """Have the launcher of the instance start a run of a job, as the daemon does for a queued run."""
    from dagster._core.code_pointer import ModuleCodePointer
    from dagster._core.launcher import LaunchRunContext
    from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

    origin = RepositoryPythonOrigin(
        executable_path="/opt/mm/bin/python",
        code_pointer=ModuleCodePointer("pipelines.definitions", "defs"),
        # The chart tells the code location its image by DAGSTER_CURRENT_IMAGE.
        container_image=image(code_location()),
    )
    run = instance.create_run_for_job(job, tags={**job.tags, **tags}, job_code_origin=JobPythonOrigin(job.name, origin))
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))


def deployment(name: str, pod: Manifest, replicas: int = 1) -> Manifest:
    """Return a Deployment of one pod, labelled as the chart labels its own."""
    labels = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": "dagster", "component": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"dagster-{name}", "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def pod_of(part: dict[str, Any], container: Manifest, account: str = "dagster") -> Manifest:
    """Return the pod of a part of the values as the chart's templates write it.

    Args:
        part: Values of the code location, the web server or the daemon.
        container: What the template itself writes: arguments, probes and mounts of Dagster's files.
        account: Name of the service account.
    """
    password = {"secretKeyRef": {"name": VALUES["global"]["postgresqlSecretName"], "key": "postgresql-password"}}
    return {
        "serviceAccountName": account,
        "securityContext": part["podSecurityContext"],
        "containers": [
            {
                "name": "dagster",
                "image": image(part),
                "imagePullPolicy": part["image"]["pullPolicy"],
                "securityContext": part["securityContext"],
                "env": [{"name": "DAGSTER_PG_PASSWORD", "valueFrom": password}],
                "envFrom": [{"secretRef": secret} for secret in part.get("envSecrets", [])],
                "resources": part.get("resources", {}),
                "volumeMounts": [*part.get("volumeMounts", []), *container.pop("volumeMounts", [])],
                **container,
            }
        ],
        "volumes": [*part.get("volumes", []), {"name": "dagster-instance", "configMap": {"name": "dagster-instance"}}],
    }


def chart_objects() -> dict[str, Manifest]:
    """Return the deployments of the chart and what the values add to them; name → object."""
    code, server, daemon = code_location(), VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]
    port = str(code["port"])
    grpc = ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", port, *code["dagsterApiGrpcArgs"]]
    health = {"exec": {"command": ["dagster", "api", "grpc-health-check", "-p", port]}}
    home = {"name": "dagster-instance", "mountPath": f"{VALUES['global']['dagsterHome']}/dagster.yaml"}
    settings = {"volumeMounts": [home | {"subPath": "dagster.yaml"}]}
    environment = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"dagster-dagster-user-deployments-{code['name']}-user-env"},
        "data": code["env"],
    }
    service = VALUES["dagsterWebserver"]["service"]
    web = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "dagster-dagster-webserver"},
        "spec": {
            "type": service["type"],
            "ports": [{"port": service["port"], "targetPort": "http", "name": "http"}],
            "selector": {"component": "webserver"},
        },
    }
    listening = {
        "ports": [{"name": "http", "containerPort": service["port"], "protocol": "TCP"}],
        "readinessProbe": server["readinessProbe"],
        **settings,
    }
    account = "dagster-dagster-user-deployments-user-deployments"
    made = [
        deployment(
            f"dagster-user-deployments-{code['name']}", pod_of(code, {"args": grpc, "readinessProbe": health}, account)
        ),
        deployment("dagster-webserver", pod_of(server, listening), server["replicaCount"]),
        deployment("daemon", pod_of(daemon, settings)),
        environment,
        web,
        *VALUES["extraManifests"],
    ]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in made}


def rendered_chart() -> dict[str, Manifest]:
    """Return what `helm template` makes of our values, kind/name → object; skip the test without helm or the chart."""
    chart = os.environ.get("DAGSTER_CHART")
    if not chart or not shutil.which("helm"):
        pytest.skip("needs the program `helm`, and DAGSTER_CHART=the folder or .tgz of `helm pull dagster/dagster`")
    values = PROJECT / "infra" / "helm" / "values.yaml"
    command = ["helm", "template", "dagster", chart, "-n", NAMESPACE, "-f", str(values)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    objects = [one for one in yaml.safe_load_all(made) if one]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in objects}
