"""Compiles the native engine ahead when the package is built, where there is a compiler. The rest is in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("frida_rtetrack") / "native"
COMPILED = runpy.run_path(str(NATIVE / "build.py"))


class BuildWithEngine(build_py):
    """Adds what the system's compiler makes to what is installed; without a compiler TinyCC does its work later."""

    def run(self) -> None:
        super().run()
        folder = NATIVE if self.editable_mode else Path(self.build_lib) / NATIVE
        folder.mkdir(parents=True, exist_ok=True)
        COMPILED["build"](folder)


class WheelOfThisMachine(bdist_wheel):
    """A wheel with compiled code is for one kind of machine, and for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        tag: tuple[str, str, str] = super().get_tag()
        return ("py3", "none", tag[2])


class MachineDistribution(Distribution):
    """Pure only where nothing can be compiled."""

    def has_ext_modules(self) -> bool:
        return COMPILED["find_compiler"]() is not None


setup(cmdclass={"build_py": BuildWithEngine, "bdist_wheel": WheelOfThisMachine}, distclass=MachineDistribution)
