"""Check that a setting of MKL's or OpenBLAS's instructions took effect, and print what is used.

Run ``python .ci/instructions.py MKL_ENABLE_INSTRUCTIONS`` or ``... OPENBLAS_CORETYPE``, with that set.
"""

import os
import subprocess
import sys

PRODUCT = "import torch; a = torch.ones(99, 99, dtype=torch.float64); a @ a"
# How MKL calls what MKL_ENABLE_INSTRUCTIONS names.
OF_MKL = {"SSE4_2": "(Intel(R) SSE4.2)", "AVX2": "(Intel(R) AVX2)"}


def used_by_mkl() -> str:
    """The line in which MKL tells its processor, which it prints by itself."""
    environment = {**os.environ, "MKL_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.partition("\n")[0]


def used_by_openblas() -> list[str]:
    """The architectures of NumPy's and SciPy's OpenBLAS."""
    import scipy.linalg  # noqa: F401  (which loads SciPy's own)
    from threadpoolctl import threadpool_info

    return [info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas"]


def main() -> int:
    name = sys.argv[1]
    wanted = os.environ[name]
    if name == "MKL_ENABLE_INSTRUCTIONS":
        used = used_by_mkl()
        took_effect = OF_MKL[wanted] in used
    else:
        architectures = used_by_openblas()
        used = f"OpenBLAS: {', '.join(architectures)}"
        took_effect = bool(architectures) and {name.lower() for name in architectures} == {wanted.lower()}
    print(f"{name}={wanted}: {used}")
    if not took_effect:
        print(f"{name}={wanted} did not take effect", file=sys.stderr)
    return int(not took_effect)


if __name__ == "__main__":
    sys.exit(main())
