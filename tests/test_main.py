"""The package run as a module."""

from __future__ import annotations

import subprocess
import sys

from histoweave import __version__, cli


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "histoweave", *argv], capture_output=True, text=True, check=False)


def test_the_module_is_the_command():
    assert run("--version").stdout.split() == ["histoweave", __version__]
    assert run("--help").stdout == cli.build_parser().format_help()


def test_its_exit_status_is_that_of_the_command():
    assert run("no-such-command").returncode == 2
    assert run("classify", "no-such-folder", "--labels", "none.csv", "--out", "none").returncode == 1
