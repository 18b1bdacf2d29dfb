"""The project as a user gets it: what the wheel holds and installs, that it runs, that README and pins are true."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from odestream.runtime import CompatError
from odestream.runtime.kernels.build import find_compiler, instruction_sets, library_name
from odestream.runtime.kernels.build_guards import can_build, guards_name

ROOT = Path(__file__).parents[1]
LAYERS = ("runtime", "models", "export")
BUILT_FROM = (*LAYERS, "pyproject.toml", "setup.py", "README.md", "LICENSE")
HEAVY = {"torch", "torchdiffeq", "onnx", "onnxscript", "onnxruntime", "matplotlib"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine without a compiler, which is the same everywhere and quickly built."""
    return build_wheel(tmp_path_factory, compiler="none")


@pytest.fixture(scope="module")
def platform_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine with a compiler."""
    try:
        return build_wheel(tmp_path_factory, find_compiler())
    except CompatError as error:
        pytest.skip(str(error))


def build_wheel(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Path:
    """Build without network from a copy, so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
        else:
            shutil.copy(ROOT / name, source / name)
    command("-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source), CXX=compiler)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which only the wheel was installed."""
    return install(wheel, tmp_path_factory.mktemp("site"))


def install(wheel: Path, target: Path) -> Path:
    command("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(wheel))
    return target


def command(*arguments: str, site: Path | None = None, **variables: str) -> str:
    """Standard output of this Python run with `arguments`, importing from `site` first."""
    first = {} if site is None else {"PYTHONPATH": str(site)}
    environment = {**os.environ, **first, **variables}
    done = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules_on_disk() -> set[str]:
    return {
        f"odestream/{path.relative_to(ROOT).as_posix()}" for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
    }


def kernels_on_disk() -> set[str]:
    found = {f"odestream/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "runtime/kernels/csrc").iterdir()}
    assert "odestream/runtime/kernels/csrc/odestream.h" in found
    return found


def test_the_wheel_holds_every_module_on_disk_kernel_source_type_mark_and_licence_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.startswith("odestream-") and ".dist-info/" in name}
    marks = {f"odestream/{layer}/py.typed" for layer in LAYERS}
    assert names - info == modules_on_disk() | kernels_on_disk() | marks
    assert any(name.endswith("/licenses/LICENSE") for name in info)


def test_a_wheel_without_the_library_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_a_wheel_with_the_library_is_for_this_platform_and_its_installation_finds_it(
    wheel: Path, platform_wheel: Path, tmp_path: Path
) -> None:
    guards = [guards_name()] if can_build() and Path(sysconfig.get_path("include"), "Python.h").is_file() else []
    plain, built = (set(zipfile.ZipFile(path).namelist()) for path in (wheel, platform_wheel))
    assert built - plain == {f"odestream/runtime/kernels/lib/{name}" for name in (library_name(), *guards)}
    assert plain < built
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert platform_wheel.name.endswith(f"-py3-none-{platform}.whl")
    site = install(platform_wheel, tmp_path / "site")
    code = (
        "from odestream.runtime.kernels.build import find_library\n"
        "from odestream.runtime.kernels.library import load_library\n"
        "from odestream.runtime.guards import GUARDS\n"
        "print(find_library(), load_library().odestream_instruction_set().decode(), GUARDS.compiled)"
    )
    path, instructions, compiled = command("-c", code, site=site, XDG_CACHE_HOME=str(tmp_path)).split()
    assert path == str(site / "odestream/runtime/kernels/lib" / library_name())
    assert instructions in instruction_sets()
    assert compiled == str(bool(guards))


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    assert folders
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_only_odestream_lands_in_site_packages(site: Path) -> None:
    top = {path.name for path in site.iterdir()}
    assert top == {"odestream", "bin", f"odestream-{metadata.version('odestream')}.dist-info"}
    assert {path.name for path in (site / "odestream").iterdir()} == set(LAYERS)


def test_the_installed_command_runs(site: Path) -> None:
    text = command(str(site / "bin" / "odestream"), "--help", site=site)
    assert all(verb in text for verb in verbs())


def test_importing_the_runtime_loads_nothing_heavy(site: Path) -> None:
    code = "import sys, odestream.runtime as r; print(r.__file__, *{m.split('.')[0] for m in sys.modules})"
    where, *loaded = command("-c", code, site=site).split()
    assert where.startswith(str(site))
    assert "numpy" in loaded
    assert not HEAVY & set(loaded)


def test_every_entry_point_names_something_that_can_be_called() -> None:
    points = [p for group in ("odestream.verbs", "odestream.verify") for p in metadata.entry_points(group=group)]
    assert len(points) >= len(verbs())
    assert all(callable(point.load()) for point in points)


def test_constraints_pin_everything_that_the_two_commands_install() -> None:
    pinned = {r.name.lower().replace("_", "-") for r in constraints() if all(s.operator == "==" for s in r.specifier)}
    assert "torch" in pinned
    assert closure("odestream", {"cpu", "train", "trt-rtx", "dev"}) - pinned == {"odestream"}


def test_readme_names_the_two_commands_and_only_verbs_and_targets_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"(?:^ *|`)make (\w+)", text, re.MULTILINE))
    assert {"demo", "test"} <= used <= targets
    assert set(re.findall(r"(?:^ *|`)odestream ([a-z]+)", text, re.MULTILINE)) <= verbs()


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


def verbs() -> set[str]:
    return {point.name for point in metadata.entry_points(group="odestream.verbs")}


def constraints() -> Iterator[Requirement]:
    """The pins that apply to this Python."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def closure(name: str, extras: set[str]) -> set[str]:
    """`name` and everything that it requires here, as normalised distribution names."""
    seen: dict[str, set[str]] = {}
    todo = [(name, extras | {""})]
    while todo:
        name, wanted = todo.pop()
        key = name.lower().replace("_", "-")
        fresh = wanted - seen.setdefault(key, set())
        seen[key] |= fresh
        for text in metadata.requires(name) or [] if fresh else []:
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in fresh):
                todo.append((requirement.name, requirement.extras | {""}))
    return set(seen)
