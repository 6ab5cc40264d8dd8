"""The folders are the packages: links, the missing `datasets/__init__.py`, short files, a light core."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("envs", "worldmodel", "planners", "baselines", "datasets", "evaluation", "sim_assets", "real")
EXTRAS = ("robosuite", "dm_control", "stable_baselines3", "transformers", "ray", "franky", "pyarrow", "lerobot")
CORE = (
    "envs.base",
    "datasets.collect",
    "datasets.features",
    "worldmodel.pretrain",
    "worldmodel.posttrain",
    "planners.registry",
    "evaluation.plan",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_linked_into_the_package(folder):
    link = ROOT / "src" / "armworld" / folder
    assert link.is_symlink() and link.readlink() == Path("..", "..", folder)
    assert link.resolve() == ROOT / folder


def test_datasets_does_not_shadow_the_library_of_that_name():
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_the_core_imports_none_of_the_extras():
    modules = "; ".join(f"import armworld.{name}" for name in CORE)
    code = f"{modules}; import sys; print([m for m in {EXTRAS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_itself_is_light():
    code = "import armworld.cli, sys; print('torch' in sys.modules or 'mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in (*FOLDERS, "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 480
    }
    assert not long
