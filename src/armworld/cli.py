"""The command line: one verb per job, each parsed by tyro from a frozen dataclass.

A verb's module is imported only when that verb runs, so `armworld --help` is quick and a missing optional package
hurts only the verb that needs it. Exit codes: 0 done, 1 a check failed (`verify`, `validate`), 2 bad input or out of
memory (one line on stderr), 130 interrupted (the line says what is kept), 141 whoever read the output went away.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NamedTuple


class Verb(NamedTuple):
    module: str
    config: str
    function: str
    summary: str


VERBS = {
    "plan": Verb("armworld.evaluation.plan", "PlanConfig", "plan", "run planning episodes, score and film them"),
    "evaluate": Verb("armworld.evaluation.suite", "EvaluateConfig", "evaluate", "run a table of methods and tasks"),
    "collect": Verb("armworld.datasets.collect", "CollectConfig", "collect", "generate DROID-like episodes"),
    "rerender": Verb("armworld.datasets.rerender", "RerenderConfig", "rerender", "render recorded episodes again"),
    "validate": Verb("armworld.datasets.commands", "ValidateConfig", "run_validate", "check every file of a dataset"),
    "inspect": Verb("armworld.datasets.commands", "InspectConfig", "run_inspect", "write a page about a dataset"),
    "export": Verb("armworld.datasets.commands", "ExportConfig", "run_export", "write a dataset in another format"),
    "import": Verb("armworld.datasets.commands", "ImportConfig", "run_import", "read real DROID or LeRobot data"),
    "cache": Verb("armworld.datasets.cache", "CacheConfig", "cache", "encode a dataset once for training"),
    "pretrain": Verb("armworld.worldmodel.pretrain", "PretrainConfig", "pretrain", "train an encoder on videos"),
    "posttrain": Verb(
        "armworld.worldmodel.posttrain", "PosttrainConfig", "posttrain", "train the action-conditioned predictor"
    ),
    "align": Verb("armworld.worldmodel.align", "AlignConfig", "align", "align a model's energy with distance"),
    "convert": Verb("armworld.worldmodel.convert", "ConvertConfig", "convert", "write a checkpoint in another format"),
    "recipe": Verb("armworld.worldmodel.recipe", "RecipeConfig", "recipe", "make the shipped weights, start to end"),
    "bc": Verb(
        "armworld.baselines.bc", "BCTrainConfig", "train", "train behaviour cloning (Octo-style, or on features)"
    ),
    "pixels": Verb("armworld.baselines.pixels_train", "PixelTrainConfig", "train", "train a world model of pixels"),
    "doctor": Verb("armworld.evaluation.doctor", "DoctorConfig", "doctor", "say what a world model can plan with"),
    "probe": Verb("armworld.worldmodel.probe", "ProbeConfig", "probe", "classify videos from frozen features"),
    "landscape": Verb("armworld.evaluation.landscape", "LandscapeConfig", "landscape", "draw a model's energy"),
    "sweep": Verb("armworld.evaluation.sweep", "SweepConfig", "sweep", "study the camera's place or the horizon"),
    "preflight": Verb("armworld.evaluation.preflight", "PreflightConfig", "preflight", "say whether a camera will do"),
    "report": Verb("armworld.evaluation.joining", "ReportConfig", "report", "join runs into one page"),
    "goal": Verb("armworld.real.goal", "GoalConfig", "goal", "drive somewhere and keep what is seen as a goal"),
    "deploy": Verb("armworld.real.deploy", "DeployConfig", "deploy", "drive a real or simulated robot"),
    "replay": Verb("armworld.real.replay", "ReplayConfig", "replay", "step through a deployment's log"),
    "view": Verb("armworld.envs.view", "ViewConfig", "view", "look at an environment and jog its arm"),
    "verify": Verb("armworld.worldmodel.verify", "VerifyConfig", "verify", "check against reference values"),
}

GOES_ON, NOTHING = "what was done is kept, run the same command again to go on", "nothing was kept"
LEFT = {  # by an interrupt, where it is not all that was done
    "validate": NOTHING,
    "inspect": NOTHING,
    "export": NOTHING,
    "convert": NOTHING,
    "doctor": "nothing was kept but episodes that --planner finished",
    "probe": NOTHING,
    "landscape": NOTHING,
    "preflight": NOTHING,
    "report": NOTHING,
    "goal": NOTHING,
    "deploy": "the log of what was driven is kept",
    "replay": "the log of what was driven is kept",
    "view": NOTHING,
    "verify": NOTHING,
}


def usage() -> str:
    lines = ["usage: armworld VERB [options]   (armworld VERB --help lists them)", "", "verbs:"]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return its exit code; user errors leave as exceptions (see `main`)."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from armworld import __version__

        print(f"armworld {__version__}")
        return 0
    from armworld.types import check_name

    verb = VERBS[check_name("verb", arguments[0], VERBS)]
    module = import_module(verb.module)
    config = parse(getattr(module, verb.config), arguments, verb.summary)
    code = getattr(module, verb.function)(config)
    return code if isinstance(code, int) else 0


def parse(config_type: type, arguments: Sequence[str], summary: str) -> object:
    """The verb's configuration; tyro's boxed error becomes a ValueError of one line."""
    import tyro

    from armworld.cli_errors import one_line

    program = f"armworld {arguments[0]}"

    def attempt() -> object:
        return tyro.cli(config_type, prog=program, args=arguments[1:], description=summary)

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return attempt()
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
    box = io.StringIO()
    with _wide_terminal(), contextlib.redirect_stderr(box), contextlib.suppress(SystemExit):
        attempt()  # says the same again, in one form wherever this runs
    raise ValueError(f"{one_line(box.getvalue())} ({program} --help lists the options)")


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """A standard output of UTF-8 on which no line is too long."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
            yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def main() -> None:
    """The `armworld` command."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        left = LEFT.get(sys.argv[1], GOES_ON) if len(sys.argv) > 1 else NOTHING
        print(f"armworld: interrupted; {left}", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE  # as a shell tells it: the command has not ended its work
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        full = out_of_memory(error)
        if os.environ.get("ARMWORLD_TRACEBACK") or (isinstance(error, RuntimeError) and not full):
            raise
        print(f"armworld: {full or ' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)


def out_of_memory(error: Exception) -> str | None:
    """One line on what to do where memory ran out, the processor's or a device's; None for any other error.

    Torch's errors are known by name and text: importing it takes seconds.
    """
    text = " ".join(str(error).split())
    torchs = type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and torchs):
        return None
    _, _, reason = text.rpartition("DefaultCPUAllocator: ")
    reason = re.split(r"(?<!\d)\. ", reason)[0].rstrip(".") or "out of memory"  # NumPy writes 745. GiB
    return (
        f"{reason}. What was saved is kept; run the command again with a smaller --batch, with --dtype bfloat16 or "
        "with --device cpu, as far as the verb has them"
    )
