"""What a measurement ran on: versions, processor and threads, without host names or paths."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

PACKAGES = (
    "torchlinreg",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-learn-intelex",
    "statsmodels",
    "skorch",
    "pandas",
    "joblib",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def describe() -> dict[str, object]:
    """Describe the environment that this process measures in.

    Returns
    -------
    dict
        `python`, `system`, `packages` (version, or None where not installed), `processor` (model,
        cores that this process may use, memory in GiB), `threads` (those of torch, the variables
        that limit them), `blas` (what NumPy was built with, what torch was built with, and every
        thread pool that is loaded) and `cuda` (None without a device). All of it goes into JSON;
        none of it names the host or a path.

    Notes
    -----
    A thread pool shows up once its library is loaded, so call this after the imports.

    Examples
    --------
    >>> sorted(describe())
    ['blas', 'cuda', 'packages', 'processor', 'python', 'system', 'threads']
    """
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": {
            "model": _processor_model(),
            "cores": _usable_cores(),
            "memory_gib": _memory_gib(),
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        },
        "blas": {
            "numpy": np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"],
            "torch": _torch_blas(),
            "pools": _thread_pools(),
        },
        "cuda": _cuda(),
    }


def _version(name: str) -> str | None:
    """The installed version of a distribution, None without one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_model() -> str:
    """The name on the processor, as far as the system tells."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    """Logical cores that this process may run on."""
    # sched_getaffinity heeds taskset and container limits; macOS and Windows do not have it.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib() -> float | None:
    """Physical memory, None where the system does not tell."""
    try:
        n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return None
    return round(n_bytes / 2**30, 1)


def _torch_blas() -> str | None:
    """The BLAS that torch was built with."""
    for entry in torch.__config__.show().replace("\n", ",").split(","):
        key, _, value = entry.strip().partition("=")
        if key.removeprefix("- Build settings: ") == "BLAS_INFO":
            return value
    return None


def _thread_pools() -> list[dict[str, object]]:
    """The thread pools of the loaded libraries, without their paths."""
    keys = ("user_api", "internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [{key: pool[key] for key in keys if key in pool} for pool in threadpool_info()]


def _cuda() -> dict[str, object] | None:
    """The CUDA device that torch uses, None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
