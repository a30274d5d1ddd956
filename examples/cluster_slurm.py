"""A dask cluster on SLURM for ``gradest run --executor dask``; needs ``dask-jobqueue`` beside ``gradest[dask]``.

    python cluster_slurm.py --workers 64 --address-file cluster.txt &
    gradest run suite.toml --executor dask --executor-arg address=$(cat cluster.txt) --out /shared/results/run

It runs on a login node, or as a job of its own, for as long as the run takes; Ctrl-C ends it, and the jobs with it.
"""

import argparse
import signal
from pathlib import Path

from dask_jobqueue import SLURMCluster


def cluster(cores: int, memory: str, walltime: str) -> SLURMCluster:
    """Jobs of so many processes of one thread each: a cell keeps one core busy."""
    return SLURMCluster(
        cores=cores,
        processes=cores,
        memory=memory,
        walltime=walltime,
        # A worker leaves five minutes before its job ends, and hands back what it has not begun.
        worker_extra_args=["--lifetime", "55m", "--lifetime-stagger", "4m"],
        # Trained networks are shared; each is made once, under a hash of all that it depends on.
        job_script_prologue=["export GRADEST_CACHE=/shared/gradest-cache", "export OMP_NUM_THREADS=1"],
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, default=64, help="most workers at a time")
    options.add_argument("--cores", type=int, default=8, help="of one job")
    options.add_argument("--memory", default="32GB", help="of one job")
    options.add_argument("--walltime", default="01:00:00", help="of one job")
    options.add_argument("--address-file", type=Path, default=Path("cluster.txt"))
    asked = options.parse_args()
    with cluster(asked.cores, asked.memory, asked.walltime) as made:
        made.adapt(minimum=0, maximum=asked.workers)
        asked.address_file.write_text(made.scheduler_address)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
