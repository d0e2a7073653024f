"""What the pods of runs take on Kubernetes beside the smaller share of all runs in `infra/helm/values.yaml`."""

import os

IN_A_POD = "KUBERNETES_SERVICE_HOST"
"""Environment variable that Kubernetes sets in each of its containers, so also in that of the code location."""
GPU = {
    "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"},
    "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
}
"""Resources of a cycle, which trains."""
SIGNING = {"secret_ref": {"name": "matting-signing"}}
"""The secret with MM_SIGNING_KEY, for runs that write bundles."""
LABELLING = {"secret_ref": {"name": "matting-labelling"}}
"""The secret with LABEL_STUDIO_API_KEY, for runs that talk to Label Studio."""


def pod(**container: object) -> dict[str, dict[str, dict[str, object]]]:
    """Return the tag with the container of a run's pod; empty outside of a cluster, because Dagster shows all tags."""
    if IN_A_POD not in os.environ:
        return {}
    return {"dagster-k8s/config": {"container_config": container}}
