"""A dask cluster on Kubernetes for ``gradest run --executor dask``; needs ``dask-kubernetes`` and its operator.

    helm install --repo https://helm.dask.org --create-namespace -n dask-operator --generate-name dask-kubernetes-operator
    python cluster_kubernetes.py --image registry.example/gradest:1 --claim results --workers 64 &
    gradest run suite.toml --executor dask --executor-arg address=$(cat cluster.txt) --out /results/run

The image holds the version of gradest, torch and Python that the command has, else its workers are refused by name. The
claim is a volume that many may write to (ReadWriteMany), mounted as ``/results`` here and there.
"""

import argparse
import signal
from pathlib import Path
from typing import Any

from dask_kubernetes.operator import KubeCluster, make_cluster_spec


def specification(image: str, claim: str, cores: int, memory: str) -> dict[str, Any]:
    """What a pod is: one worker process for each core, the shared volume, and the cache on it."""
    resources = {"requests": {"cpu": str(cores), "memory": memory}, "limits": {"memory": memory}}
    command = ["dask", "worker", "--nworkers", str(cores), "--nthreads", "1"]
    variables = {"GRADEST_CACHE": "/results/cache", "OMP_NUM_THREADS": "1"}
    spec = make_cluster_spec("gradest", image, n_workers=0, resources=resources, env=variables, worker_command=command)
    pod = spec["spec"]["worker"]["spec"]
    worker = pod["containers"][0]
    worker["volumeMounts"] = [{"name": "results", "mountPath": "/results"}]
    pod["volumes"] = [{"name": "results", "persistentVolumeClaim": {"claimName": claim}}]
    return spec


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--image", required=True)
    options.add_argument("--claim", required=True, help="volume claim that all pods share")
    options.add_argument("--workers", type=int, default=64, help="most pods at a time")
    options.add_argument("--cores", type=int, default=1, help="of one pod")
    options.add_argument("--memory", default="4Gi", help="of one pod")
    options.add_argument("--address-file", type=Path, default=Path("cluster.txt"))
    asked = options.parse_args()
    with KubeCluster(custom_cluster_spec=specification(asked.image, asked.claim, asked.cores, asked.memory)) as made:
        made.adapt(minimum=0, maximum=asked.workers)
        asked.address_file.write_text(made.scheduler_address)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
