from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from histoweave import __version__, _doctor, cli
from histoweave._settings import settings


@pytest.fixture
def commands(monkeypatch):
    """Stand in for the commands; the list receives the parsed arguments of each call."""
    calls = []
    module = ModuleType("histoweave._commands")
    module.run_demo = module.run_classify = calls.append
    monkeypatch.setitem(sys.modules, "histoweave._commands", module)
    return calls


def test_demo_defaults(commands):
    assert cli.main(["demo"]) == 0
    (args,) = commands
    assert (args.out, args.seed, args.progress) == (Path("histoweave-demo"), 0, True)


def test_demo_options(commands):
    cli.main(["demo", "--out", "here", "--seed", "7", "--no-progress"])
    assert (commands[0].out, commands[0].seed, commands[0].progress) == (Path("here"), 7, False)


def test_classify_options(commands):
    call = "classify outs --labels l.csv --out r --counts c.tsv --spots s.tsv --image i.tif --scale 0.5"
    cli.main([*call.split(), "--hide-blocks", "0.5", "--labels-column", "niche"])
    (args,) = commands
    paths = (args.section, args.labels, args.out, args.counts, args.spots, args.image)
    assert paths == tuple(map(Path, ["outs", "l.csv", "r", "c.tsv", "s.tsv", "i.tif"]))
    assert (args.scale, args.hide_blocks, args.labels_column, args.seed) == (0.5, 0.5, "niche", 0)


def test_classify_leaves_out_what_was_not_given(commands):
    cli.main(["classify", "outs", "--labels", "l.csv", "--out", "r"])
    (args,) = commands
    assert [args.counts, args.spots, args.image, args.scale, args.hide_blocks, args.labels_column] == [None] * 6


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["unknown"],
        ["classify", "outs", "--out", "r"],
        ["classify", "outs", "--labels", "l.csv"],
        ["classify", "outs", "--labels", "l.csv", "--out", "r", "--hide-blocks", "1.5"],
        ["classify", "outs", "--labels", "l.csv", "--out", "r", "--hide-blocks", "nan"],
        ["classify", "outs", "--labels", "l.csv", "--out", "r", "--scale", "0"],
        ["demo", "--seed", "x"],
    ],
)
def test_mistaken_arguments_exit_with_2_before_any_work(argv, commands, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: histoweave" in capsys.readouterr().err
    assert commands == []


@pytest.mark.parametrize("error", [KeyError("no 'x' here"), ValueError("no 'x' here"), OSError("no 'x' here")])
def test_errors_in_the_data_are_one_line_and_exit_with_1(error, commands, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(sys.modules["histoweave._commands"], "run_demo", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "histoweave: error: no 'x' here"
    with pytest.raises(type(error)):
        cli.main(["demo", "--traceback"])


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out.split()) == (0, ["histoweave", __version__])


def test_help_loads_nothing_heavy():
    code = "import sys; from histoweave import cli; cli.build_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "scanpy", "anndata", "numpy"} & set(loaded)


# ------------------------------------------------------------------ doctor


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """Let the doctor look at a few light packages only."""

    def pretend(*required, **extras):
        found = (
            [Requirement(r) for r in required],
            {k: [Requirement(r) for r in v] for k, v in extras.items()},
        )
        monkeypatch.setattr(_doctor, "requirements", lambda: found)
        monkeypatch.setattr(settings, "data_dir", tmp_path / "data")

    return pretend


def test_doctor_of_a_sound_installation(needs, capsys):
    needs("numpy>=2", "torch", "scikit-learn")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("numpy", "torch", "scikit-learn"):
        assert f"{name:<18} {metadata.version(name)}" in out
    assert "float32" in out or "bfloat16" in out
    assert "writable" in out
    assert out.rstrip().endswith("Healthy.")


def test_doctor_finds_missing_old_and_broken_packages(needs, capsys, monkeypatch):
    needs("numpy>=999", "nonesuch>=1", "torchvision", "pooch")

    def import_module(name):
        if name == "torchvision":
            msg = "operator torchvision::nms does not exist"
            raise RuntimeError(msg)

    monkeypatch.setattr(_doctor.importlib, "import_module", import_module)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"{metadata.version('numpy')} does not fit (>=999 needed)" in out
    assert "missing (>=1 needed)" in out
    assert "operator torchvision::nms does not exist" in out
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("Broken: numpy, nonesuch, torchvision.")
    assert last.endswith("nonesuch numpy torch torchvision")


def test_doctor_without_torch_still_reports(needs, capsys, monkeypatch):
    needs("torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["doctor"]) == 1
    assert "torch does not work" in capsys.readouterr().out


def test_doctor_names_the_extra_to_install(needs, capsys):
    needs("numpy", wsi=["nonesuch"], survival=["numpy"])
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert 'not complete (nonesuch): pip install "histoweave[wsi]"' in out
    assert f"{'survival':<18} installed" in out


def test_doctor_reports_settings_that_cannot_hold(needs, capsys, monkeypatch):
    needs("numpy")
    blocker = settings.data_dir.parent / "file"
    blocker.touch()
    monkeypatch.setattr(settings, "data_dir", blocker / "data")
    monkeypatch.setattr(settings, "device", "cuda:99")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "not writable" in out
    assert "device='cuda:99'" in out


def test_requirements_are_those_of_the_package():
    required, extras = _doctor.requirements()
    names = {need.name for need in required}
    assert {"anndata", "torch", "torchvision", "squidpy"} <= names
    assert not names & {"pytest", "sphinx", "lifelines"}
    assert set(extras) == {"scvi", "survival", "wsi"}
