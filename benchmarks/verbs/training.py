"""Verbs that train models and say what they are worth."""

from __future__ import annotations

import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import DataDir, Plugins, choose, fail, print_json, require_writable

if TYPE_CHECKING:
    from ..trainer import Session


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file, or burda or sumo; the short default without one.")
    ] = None,
    theta: Annotated[str | None, typer.Option(help="estimator of theta's gradient")] = None,
    phi: Annotated[str | None, typer.Option(help="estimator of phi's gradient; theta's without one")] = None,
    num_samples: Annotated[int | None, typer.Option("--num-samples", "-K", min=1)] = None,
    model: Annotated[str | None, typer.Option(help="family of models, such as vae[hidden=100,latent=20]")] = None,
    data: Annotated[str | None, typer.Option(help="digits, mnist, fashion-mnist, omniglot")] = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="length of the schedule; Burda's has its own")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, xpu, mps")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="any setting, such as data.batch=20")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder; gone on from where it exists")] = Path(
        "results/training"
    ),
    stop_after: Annotated[
        float | None, typer.Option(min=0.0, max=1e9, help="stop after this epoch of the schedule; go on later")
    ] = None,
    every: Annotated[float, typer.Option(min=0.0, max=1e9, help="seconds between checkpoints")] = 60.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="start again where a checkpoint is")] = False,
    plugin: Plugins = None,
) -> None:
    """Train a model by any estimator for theta and any for phi; goes on where it was stopped."""
    from ..data import DataError
    from ..images import load
    from ..registry import Refusal, Registry, check_device
    from ..runner import keep_freed_memory
    from ..specs import SpecError
    from ..trainer import Session, read
    from ..trainer.session import CHECKPOINT
    from ..training import TrainingError

    require_writable(out / CHECKPOINT)
    named = {
        "objective.theta": theta, "objective.phi": phi, "objective.num_samples": num_samples, "model": model,
        "data.name": data, "optimizer.epochs": epochs, "seed": seed, "device": device,
    }  # fmt: skip
    try:
        changes = {key: value for key, value in named.items() if value is not None} | dict(
            map(_assignment, change or ())
        )
        settings = read(config, changes)
        check_device(settings.device)
        images = load(
            settings.data.name, folder=data_dir, binarisation=settings.data.binarisation, device=settings.device
        )
        session = Session(settings, images, Registry(plugin or ()))
        if (out / CHECKPOINT).exists() and not fresh:
            session.restore(out / CHECKPOINT)
            typer.echo(f"going on from step {session.step} of {session.steps}", err=True)
    except (SpecError, Refusal, DataError) as wrong:
        fail(wrong)
    for line in session.announced:
        typer.echo(line, err=True)
    keep_freed_memory()
    until = None if stop_after is None else round(stop_after * session.per_epoch)
    try:
        with _stoppable() as stopped, _bar(session, until) as tell:
            session.run(out, lambda seen: tell(seen) or stopped(), until=until, every=every)
    except TrainingError as wrong:
        fail(wrong, 1)
    except DataError as wrong:
        fail(wrong, 3)
    if stopped():
        fail(f"stopped after step {session.step}; run the same command again to go on in {out}", 130)
    last = session.held_out()
    typer.echo(
        f"step {session.step} of {session.steps}, held-out ELBO {last['heldout_elbo']:.2f}, "
        f"L_{last['bound_num_samples']} {last['heldout_bound']:.2f}: {out}"
    )


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the run folder that holds one.")],
    num_samples: Annotated[int, typer.Option("--num-samples", "-K", min=2, help="K of the held-out L_K")] = 5000,
    images: Annotated[int, typer.Option(min=2, help="held-out images, from the first")] = 500,
    data_dir: DataDir = None,
    ais: Annotated[int, typer.Option(min=0, help="temperatures of annealed importance sampling; 0: none")] = 0,
    chains: Annotated[int, typer.Option(min=1, help="chains of it for each image")] = 16,
    ais_images: Annotated[int, typer.Option(min=2, help="how many of the images get it")] = 100,
    bdmc: Annotated[int, typer.Option(min=0, help="simulated images for bidirectional bounds; 0: none")] = 0,
    jvi: Annotated[int, typer.Option(min=0, help="order of the jackknifed bound; 0: none")] = 0,
    jvi_samples: Annotated[int, typer.Option(min=2, help="its number of samples")] = 64,
    gaps: Annotated[str | None, typer.Option(help="families for the variational gaps: diagonal,full-rank,flow")] = None,
    gap_images: Annotated[int, typer.Option(min=2, help="how many of the images get them")] = 50,
    gap_steps: Annotated[int, typer.Option(min=100, help="most steps of their optimisation")] = 3000,
    corrected: Annotated[int, typer.Option(min=0, help="K of q_IW, whose ELBO is bounded; 0: none")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the JSON here as well")] = None,
) -> None:
    """What a checkpoint is worth on held-out images, as JSON: L_K with k-hat, AIS, BDMC, JVI, active units, gaps, q_IW."""
    from ..data import DataError
    from ..evaluation import Annealing
    from ..evaluation.local_guides import FAMILIES
    from ..images import load
    from ..records import pretty, write_text
    from ..registry import Refusal
    from ..specs import SpecError
    from ..trainer import assess, trained

    require_writable(out)
    shapes = [choose(each.strip(), tuple(FAMILIES), "family") for each in gaps.split(",")] if gaps else []
    try:
        family, parameters, settings, facts = trained(checkpoint)
        held_out = load(settings.data.name, folder=data_dir).held_out
        if held_out.shape[1] != facts["pixels"]:
            raise DataError(
                f"{checkpoint} is of {facts['pixels']} pixels, {settings.data.name} has {held_out.shape[1]}"
            )
    except (SpecError, DataError) as wrong:
        fail(wrong)
    dtype = next(iter(parameters["theta"].values())).dtype
    x = held_out[:images].to(dtype)
    found: dict[str, Any] = {"checkpoint_step": facts["step"], "settings": facts["settings"], "seed": seed}
    found["importance_sampling"] = assess.likelihood(family, parameters, x, num_samples, seed)
    found["active_units"] = assess.units(family, parameters, held_out.to(dtype))
    annealing = Annealing(steps=ais or 1000, chains=chains)
    try:
        if ais:
            found["annealed_importance_sampling"] = assess.annealed(family, parameters, x[:ais_images], annealing, seed)
        if bdmc:
            found["bidirectional"] = assess.both_ways(family, parameters, bdmc, annealing, seed)
        if jvi:
            found["jackknife"] = assess.jackknife(family, parameters, x, jvi_samples, jvi, seed)
        if shapes or corrected:
            few = x[:gap_images]
            found["lost"] = assess.lost(family, parameters, few, num_samples, shapes, corrected, gap_steps, seed)
    except (SpecError, Refusal, TypeError, NotImplementedError) as wrong:
        fail(wrong)
    print_json(found)
    if out is not None:
        write_text(out, pretty(found))


def _assignment(text: str) -> tuple[str, Any]:
    """``data.batch=20`` as name and value; a value that is not TOML is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        fail(f"--set takes section.key=value, not {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether the user has asked to stop: then the step is finished and its checkpoint kept; asked twice, stop at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _bar(session: Session, until: int | None) -> Iterator[Callable[[Session], None]]:
    """A bar with the objective's value, the held-out ELBO and the time left; a line a minute where there is no terminal."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    end = min(session.steps, session.steps if until is None else until)
    first, began, spoke = session.step, time.monotonic(), time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=end, completed=session.step)

        def tell(seen: Session) -> None:
            nonlocal spoke
            now = time.monotonic()
            if now - spoke < (0.25 if console.is_terminal else 60):
                return
            spoke = now
            value = float(torch.stack(list(seen.recent)).nanmean())
            elbo = seen.points[-1]["heldout_elbo"]
            shown = f"objective {value:8.2f}  held-out ELBO {'-' if elbo is None else f'{elbo:.2f}'}"
            progress.update(task, completed=seen.step, description=shown)
            if not console.is_terminal:
                left = (now - began) / max(seen.step - first, 1) * (end - seen.step)
                print(f"step {seen.step} of {end}  {shown}  {left:.0f} s left", file=sys.stderr, flush=True)

        yield tell
