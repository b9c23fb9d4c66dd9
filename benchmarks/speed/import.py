"""Seconds to import histoweave against scanpy, each time in a fresh process, taking turns.

python benchmarks/speed/import.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CODE = {
    "python itself": "pass",
    "import histoweave": "import histoweave",
    "import histoweave, first use of pp.crops": "import histoweave; histoweave.pp.crops",
    "import scanpy": "import scanpy",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    for code in CODE.values():  # files into the disk cache, bytecode written
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(repeats):
        for name, code in CODE.items():
            times[name].append(seconds(code))
    print("| | seconds, median (range) | scanpy takes ... times as long |\n|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(s / v for s, v in zip(times["import scanpy"], values, strict=True))
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f}) | {ratio:.2f} |")


if __name__ == "__main__":
    main()
