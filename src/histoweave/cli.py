"""The ``histoweave`` command: ``demo``, ``classify`` and ``doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from histoweave._version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments after the program's name; those of the process by default.

    Returns
    -------
    The exit status: 0 for success, 1 for an error in the data or in the installation. A mistake in the
    arguments themselves exits with 2.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("histoweave: interrupted", file=sys.stderr)
        return 130
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.traceback:
            raise
        # str(KeyError) would put the message in quotes
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"histoweave: error: {message}\n(--traceback shows where it was raised)", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line and its subcommands."""
    parser = argparse.ArgumentParser(
        prog="histoweave",
        description="From a tissue section and a few labelled spots to a region map you can trust.",
    )
    parser.add_argument("--version", action="version", version=f"histoweave {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_classify(commands)
    doctor = _add_command(commands, "doctor", _doctor, "check the installation")
    doctor.epilog = "Exits with 1 when a required package is missing, too old or does not import."
    return parser


def _add_command(commands, name: str, run, summary: str, **kwargs) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", **kwargs)
    command.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    command.set_defaults(run=run)
    return command


def _add_demo(commands) -> None:
    demo = _add_command(commands, "demo", _demo, "simulate sections, map their regions and write a report")
    demo.add_argument("--out", type=Path, default=Path("histoweave-demo"), metavar="DIR",
                      help="folder for the report (default: %(default)s)")  # fmt: skip
    _add_run_options(demo)


def _add_classify(commands) -> None:
    classify = _add_command(commands, "classify", _classify, "label every spot of a section from the labelled ones")
    classify.add_argument("section", type=Path, metavar="SECTION",
                          help="Space Ranger `outs` folder, or a folder with legacy ST files")  # fmt: skip
    classify.add_argument("--labels", type=Path, required=True, metavar="FILE",
                          help="labels of some spots: CSV, TSV, Loupe export or GeoJSON")  # fmt: skip
    classify.add_argument("--labels-column", metavar="NAME", help="column with the labels, where there are several")
    classify.add_argument(
        "--ignore-label",
        action="append",
        default=[],
        metavar="NAME",
        help="take this label as unlabelled, e.g. undetermined; may be repeated",
    )
    classify.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for report, CSV and h5ad")
    classify.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help="legacy ST: counts, spots x genes, TSV; paths may be relative to SECTION",
    )
    classify.add_argument("--spots", type=Path, metavar="FILE", help="legacy ST: spot positions")
    classify.add_argument("--image", type=Path, metavar="FILE", help="full-resolution image")
    classify.add_argument(
        "--scale", type=_positive, metavar="F", help="legacy ST: pixels of the image per unit of the positions"
    )
    classify.add_argument("--name", metavar="NAME", help="legacy ST: name of the section")
    classify.add_argument("--hide-blocks", type=_fraction, metavar="FRACTION",
                          help="hide about this share of the labels, in whole blocks (1/2, 1/3, 1/4 ...) and a buffer "
                               "around them, and score on the blocks")  # fmt: skip
    _add_run_options(classify)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    command.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        msg = f"must be a positive number, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        msg = f"must lie between 0 and 1, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return value


# imported on use: each command pays only for what it needs
def _demo(args: argparse.Namespace) -> int | None:
    from histoweave._commands import run_demo

    return run_demo(args)


def _classify(args: argparse.Namespace) -> int | None:
    from histoweave._commands import run_classify

    return run_classify(args)


def _doctor(args: argparse.Namespace) -> int:
    from histoweave._doctor import run_doctor

    return run_doctor(args)
