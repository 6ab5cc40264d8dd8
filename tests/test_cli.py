"""The command line's contract: exit codes, one line of error, names of what is valid."""

import re
import signal
import subprocess
import sys

import pytest

from armworld import cli


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["armworld", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_help_names_every_verb(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in cli.VERBS)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself(monkeypatch, capsys, verb):
    assert call(monkeypatch, verb, "--help") == 0
    printed = capsys.readouterr().out
    assert "--out" in printed or verb in ("verify", "validate", "view", "replay", "sweep")
    assert not re.findall(r"^\s*(--[a-z][\w.-]*)(?: \S+)*\s{2,}\((?:default|required)", printed.replace("│", ""), re.M)


@pytest.mark.parametrize("study", ["camera", "horizon"])
def test_every_study_explains_itself(monkeypatch, capsys, study):
    assert call(monkeypatch, "sweep", study, "--help") == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("fly",), "unknown verb 'fly'; valid: plan"),
        (("plan", "--task", "juggle", "--out", "x"), "juggle"),
        (("plan", "--agent", "clairvoyant", "--out", "x"), "clairvoyant"),
        (("plan", "--model", "/nowhere", "--out", "x"), "/nowhere"),
        (("plan", "--camera", "lefft", "--out", "x"), "lefft"),
        (("plan", "--seeds", "ten", "--out", "x"), "ten"),
        (("sweep", "camera", "--azimuth", "a", "--out", "x"), "azimuth 'a'"),
        (("sweep", "horizon", "--plans", "one", "--out", "x"), "plans 'one'"),
        (("sweep", "weather", "--out", "x"), "camera"),
        (("collect", "--episodes", "0", "--out", "x"), "episodes must be at least 1, got 0"),
        (("pretrain", "--data", "nowhere", "--out", "x", "--steps", "1"), "nowhere"),
        (
            ("pretrain", "--data", "nowhere", "--out", "x", "--size", "huge", "--steps", "1"),
            "unknown encoder size 'huge'",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("collect", "--out", "x"), "what was done is kept, run the same command again to go on"),
        (("convert", "default", "--out", "x", "--format", "armworld"), "nothing was kept"),
        (("doctor", "default", "--out", "x"), "nothing was kept but episodes that --planner finished"),
    ],
)
def test_an_interrupt_is_exit_code_130_and_says_what_is_left(monkeypatch, capsys, arguments, left):
    def interrupted(config):
        raise KeyboardInterrupt

    verb = cli.VERBS[arguments[0]]
    monkeypatch.setattr(f"{verb.module}.{verb.function}", interrupted)
    assert call(monkeypatch, *arguments) == 130
    assert capsys.readouterr().err == f"armworld: interrupted; {left}\n"


def test_what_goes_on_after_an_interrupt_is_what_keeps_its_work():
    trained = {"pretrain", "posttrain", "align", "recipe", "bc", "pixels"}
    assert cli.VERBS.keys() - cli.LEFT == trained | {
        "plan",
        "evaluate",
        "sweep",
        "collect",
        "rerender",
        "import",
        "cache",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("plan --episodes x", "--episodes needs a whole number, got 'x'"),
        ("plan --task", "--task needs a value"),
        ("pretrain --out x --mask-scales 0.1", "--mask-scales needs 2 values"),
        ("pretrain --out x --mask-scales a b", "--mask-scales needs 2 numbers, got 'a', 'b'"),
        ("pretrain --out x --depth a", "--depth needs a whole number or None, got 'a'"),
        ("pretrain --out x --weights a", "--weights needs numbers, got 'a'"),
        ("goal --out x --state 1 2", "--state needs 7 numbers or None, got '1', '2'"),
        ("pretrain --optimizer foo --out x", "--optimizer must be one of adamw, muon, got 'foo'"),
        ("export x --out y --format zarr", "--format must be one of lerobot, got 'zarr'"),
        ("pretrain --views --out x", "unknown option --views; perhaps --videos"),
        ("pretrain --outt x", "missing: --out PATH; unknown option --outt"),
        ("collect --out x --behaviours.nod 1", "unknown option --behaviours.nod; perhaps --behaviours.handle"),
        ("recipe --out x --views maybe", "unknown argument maybe"),
        ("verify", "missing: Folder with reference .npz files"),
        ("sweep", "one of camera, horizon must be named"),
        ("sweep weather --out x", "unknown argument weather; valid: camera, horizon"),
        ("pretrain --out x --steps 1 --ema 2", "ema must be at least 0 and below 1, got 2.0"),
        (f"pretrain --out {'long/' * 40}x --batch {'b' * 120}", f"--batch needs a whole number, got '{'b' * 120}'"),
    ],
)
def test_an_option_that_cannot_be_read_is_told_in_one_plain_line(monkeypatch, capsys, arguments, told):
    verb = arguments.split()[0]
    assert call(monkeypatch, *arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"armworld: {told}") and line.endswith(f"(armworld {verb} --help lists the options)")


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), "CUDA out of memory. What"),
        (
            RuntimeError("[... at a.cpp:1] . DefaultCPUAllocator: can't allocate memory: tried 8 bytes. Error code 12"),
            "armworld: can't allocate memory: tried 8 bytes. What",
        ),
        (RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory. What"),
        (MemoryError("Unable to allocate 1.00 TiB for an array"), "1.00 TiB for an array. What was saved is kept"),
        (MemoryError("Unable to allocate 745. GiB for an array"), "allocate 745. GiB for an array. What was saved"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_do(monkeypatch, capsys, error, told):
    def full(config):
        raise error

    monkeypatch.setattr("armworld.datasets.collect.collect", full)
    assert call(monkeypatch, "collect", "--out", "x") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line and all(advice in line for advice in ("--batch", "--dtype bfloat16", "--device cpu"))
    monkeypatch.setenv("ARMWORLD_TRACEBACK", "1")
    with pytest.raises(type(error)):
        call(monkeypatch, "collect", "--out", "x")


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    def broken(config):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("armworld.datasets.collect.collect", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        call(monkeypatch, "collect", "--out", "x")


def test_a_reader_that_went_away_is_no_success():
    piped = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", "armworld", "--help"], stdout=piped, stderr=piped) as command:
        assert command.stdout and command.stderr
        command.stdout.close()
        assert command.stderr.read() == b"" and command.wait() == 128 + signal.SIGPIPE
