"""The native kernel, where there is a compiler; everything else of the build is in pyproject.toml
(which has a place for this too, but setuptools still calls that experimental).

``python setup.py -q build_ext --inplace`` compiles it in a checkout.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "drvm.chunker._kernel",
            sources=["drvm/chunker/_kernel.c"],
            depends=["drvm/chunker/_lanes.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=True,  # without it drvm/chunker/kernel.py has another one
        )
    ]
)
