"""Verbs that compare: trainings by several estimators, and gradients where a training stands."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .common import DataDir, Json, Plugins, choose, echo, fail, print_json, require_run_folder


def study(
    name: Annotated[str, typer.Argument(help="iwae: ELBO against IWAE, and other estimators beside them.")] = "iwae",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder; finished trainings in it are kept")] = Path(
        "results/study"
    ),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="processes; 0: one per core")] = 0,
    seeds: Annotated[int, typer.Option(min=2, help="paired repetitions")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="of each training")] = 80,
    images: Annotated[int, typer.Option(min=2, help="held-out images")] = 500,
    num_samples: Annotated[int, typer.Option("--num-samples", "-K", min=2, help="K of the held-out L_K")] = 1000,
    model: Annotated[str, typer.Option(help="family of models with its sizes")] = "vae[hidden=100,latent=50]",
    arm: Annotated[list[str] | None, typer.Option(help="only these arms")] = None,
    full: Annotated[bool, typer.Option("--full", help="also sticking the landing and reweighted wake-sleep")] = False,
    data: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, omniglot")] = "digits",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Train the same network by several estimators, seed by seed, and compare what comes out."""
    from ..data import DataError
    from ..images import load
    from ..records import write, write_text
    from ..runner import StoreError, bibtex, interruptible, open_run, usable_cores
    from ..schema import StudyRecord
    from ..specs import SpecError
    from ..trainer import findings
    from ..trainer.families import family
    from ..trainer.study import ARMS, CITATIONS, Plan, run

    choose(name, ("iwae",), "study")
    require_run_folder(out)
    usual = tuple(ARMS) if full else Plan().arms
    arms = tuple(dict.fromkeys(choose(each, tuple(ARMS), "arm") for each in arm)) if arm else usual
    plan = Plan(arms, seeds, epochs, images, num_samples, model, data, str(data_dir or ""))
    workers = jobs or usable_cores()
    try:
        family(model)
        load(data, folder=data_dir)
        books = {key: text for key, text in bibtex().items() if key in CITATIONS}
        command, settings = shlex.join(["gradest", *sys.argv[1:]]), {"study": name, **dataclasses.asdict(plan)}
        open_run(out, [], command=command, settings=settings, bibliography=books, workers=workers)
        with interruptible():
            results = run(plan, out, workers, _counter())
    except (SpecError, DataError) as wrong:
        fail(wrong)
    except StoreError as wrong:
        fail(wrong, 3)
    except KeyboardInterrupt:
        fail(f"stopped; finished trainings are kept, run the same command again to go on in {out}", 130)
    found = findings.of(results, plan)
    text = findings.markdown(found)
    write(out / "study" / "iwae.json", StudyRecord(kind="iwae", data=found, citations=list(CITATIONS)))
    write_text(out / "findings.md", text)
    whole = json.dumps(found, indent=1) if as_json else f"{text}\nWith curves and pictures: gradest report {out}"
    for line in whole.splitlines():
        echo(line)


def gradients(
    checkpoint: Annotated[
        list[str] | None, typer.Argument(help="NAME=PATH of checkpoints; without any, five states are trained.")
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option("--estimator", "-e", help="names or globs; ten usual ones")
    ] = None,
    num_samples: Annotated[str, typer.Option("--num-samples", "-K", help="comma-separated")] = "1,8,64,512",
    batch: Annotated[int, typer.Option(min=1, help="images of a minibatch")] = 20,
    minibatches: Annotated[int, typer.Option(min=4, help="of each K; fewer where K is large")] = 24,
    repeats: Annotated[int, typer.Option(min=2, help="estimates of each minibatch")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="of the training to convergence")] = 40,
    model: Annotated[str, typer.Option(help="family of models with its sizes")] = "vae[hidden=100,latent=50]",
    data: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, omniglot")] = "digits",
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder; what is finished in it is kept")] = Path(
        "results/gradients"
    ),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="processes; 0: one per core")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """A step's gradient at frozen points of a training, layer by layer: signal, Monte Carlo and minibatch noise, cost."""
    from ..data import DataError
    from ..images import load
    from ..records import write
    from ..references.loop import LoopEstimator
    from ..registry import Refusal, Registry
    from ..runner import StoreError, bibtex, interruptible, open_run, usable_cores
    from ..schema import StudyRecord
    from ..specs import SpecError, select, whole_numbers
    from ..trainer import trained
    from ..trainer.families import family
    from ..trainer.gradient_study import ESTIMATORS, GradientPlan, run
    from ..trainer.gradients import Design

    require_run_folder(out)
    workers = jobs or usable_cores()
    try:
        registry = Registry(plugin or ())
        # Another library's loss gives gradients of whole batches of data, by a generator of its own.
        offered = [name for name, kind in registry.estimators.items() if not issubclass(kind, LoopEstimator)]
        names = tuple(select(estimator or list(ESTIMATORS), offered, "estimator"))
        sizes = tuple(sorted(set(whole_numbers(num_samples, "--num-samples"))))
        given = tuple(_checkpoint(each) for each in checkpoint or ())
        for _, path in given:
            trained(Path(path))
        design = Design(batch, minibatches, repeats, seed)
        plan = GradientPlan(
            names, sizes, design, model=model, data=data, epochs=epochs, seed=seed, folder=str(data_dir or ""),
            plugins=tuple(plugin or ()), checkpoints=given,
        )  # fmt: skip
        family(model)
        images = load(data, folder=data_dir).train
        if batch > len(images):
            fail(f"a batch of {batch} is more than the {len(images)} training images")
        keys = {key for name in names for key in registry.estimator(name, max(2, sizes[-1])).citations}
        books = {key: text for key, text in bibtex().items() if key in keys}
        command, settings = shlex.join(["gradest", *sys.argv[1:]]), {"study": "gradients", **dataclasses.asdict(plan)}
        open_run(out, [], command=command, settings=settings, bibliography=books, workers=workers)
        with interruptible():
            found = run(plan, out, workers, _counter("trainings and measurements"))
    except (SpecError, DataError, Refusal) as wrong:
        fail(wrong)
    except StoreError as wrong:
        fail(wrong, 3)
    except KeyboardInterrupt:
        fail(f"stopped; what is finished is kept, run the same command again to go on in {out}", 130)
    write(out / "study" / "gradients.json", StudyRecord(kind="gradients", data=found, citations=sorted(books)))
    if as_json:
        print_json(found)
        return
    for state in found["states"]:
        echo(f"{state['state']}: {state['trained']}, held-out ELBO {state['elbo']:.1f}, "
                   f"active units {'+'.join(map(str, state['active_units']))}")  # fmt: skip
    typer.echo(f"{len(found['rows'])} rows, {len(found['refused'])} refused; by layer: gradest report {out}")


def _checkpoint(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        fail(f"a checkpoint is given as NAME=PATH, not {text!r}")
    return name, path


def _counter(noun: str = "trainings") -> Callable[[int, int, str], None]:
    began, at_first = time.monotonic(), -1

    def tell(done: int, total: int, name: str) -> None:
        nonlocal at_first
        at_first = done if at_first < 0 else at_first
        spent = time.monotonic() - began
        left = f", about {spent / (done - at_first) * (total - done):.0f} s left" if done > at_first else ""
        typer.echo(f"{done} of {total} {noun}{left}{f': {name}' if name else ''}", err=True)

    return tell
