"""Peak memory of one fit, measured in a process of its own.

``python -m benchmarks.peak_memory NAME SHAPE`` prints one line of JSON. X is made first; then a
small fit brings in everything that is loaded or allocated once; the fit's extra memory is the peak
during it above what is resident before it.
"""

import argparse
import ctypes
import gc
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.libraries import LIBRARIES, unfit_reason
from benchmarks.synthetic import Shape, make_data, parse_shape

ROOT = Path(__file__).parents[1]  # "-m benchmarks..." works from here only
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def measure(name: str, shape: Shape) -> dict[str, object]:
    """Measure a library's fit in a fresh process.

    Parameters
    ----------
    name : str
        The name of a row of `benchmarks.libraries.LIBRARIES`.
    shape : Shape
        The shape of a dense float64 X.

    Returns
    -------
    dict
        `name`, `status` ("measured", "skipped" or "failed"), `reason` where it is not measured,
        else `extra_bytes`, `X_bytes`, their quotient `fraction` and the `method`.
    """
    library = next(row for row in LIBRARIES if row.name == name and "dense" in row.kinds)
    reason = unfit_reason(library, "dense", shape)
    if reason is not None:
        return {"name": name, "status": "skipped", "reason": reason}
    command = [sys.executable, "-m", "benchmarks.peak_memory", name, str(shape)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        return {"name": name, "status": "failed", "reason": lines[-1]}
    return {"name": name, "status": "measured", **json.loads(child.stdout.splitlines()[-1])}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one fit in this process and print one line of JSON.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Command line arguments; None takes those of the process.

    Returns
    -------
    int
        The exit status, 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__)
    dense = [library for library in LIBRARIES if "dense" in library.kinds]
    parser.add_argument("name", choices=[library.name for library in dense])
    parser.add_argument("shape", type=parse_shape)
    options = parser.parse_args(arguments)
    library = next(row for row in dense if row.name == options.name)

    data = make_data(options.shape)
    # Large enough that the linear algebra starts its threads and gets its buffers.
    library.fit(make_data(Shape(2000, options.shape.n_features), seed=1))
    gc.collect()
    _return_free_memory()
    method, before = _reset_peak()
    library.fit(data)
    extra = max(_peak() - before, 0)
    report = {
        "extra_bytes": extra,
        "X_bytes": data.X.nbytes,
        "fraction": extra / data.X.nbytes,
        "method": method,
    }
    print(json.dumps(report))
    return 0


def _return_free_memory() -> None:
    """Hand freed memory back to the system, or the fit could take it up unseen (glibc only)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> tuple[str, int]:
    """Set the peak back to what is resident if that can be done; the method and the baseline."""
    if STATUS.exists() and CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
        return "VmHWM after a reset, above VmRSS", _status_bytes("VmRSS")
    # X is filled by blocks of rows, so that the peak so far is about what is resident.
    return "ru_maxrss, above ru_maxrss before the fit", _peak()


def _peak() -> int:
    """Peak resident bytes."""
    if STATUS.exists():
        return _status_bytes("VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def _status_bytes(key: str) -> int:
    """A size from the process's status, which gives kibibytes."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise ValueError(f"{STATUS} has no {key}")


if __name__ == "__main__":
    sys.exit(main())
