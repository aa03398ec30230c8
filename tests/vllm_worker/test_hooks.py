"""What gpupool rests on in vLLM: all of it is in the one that is here, and what breaks is seen."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

SPEC = find_spec("vllm")
if SPEC is None or not SPEC.submodule_search_locations:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from gpupool.vllm.hooks.finding import BROKEN, LOST, MET, Finding, is_broken, look, wrong  # noqa: E402
from gpupool.vllm.hooks.hook import Hook, Need  # noqa: E402
from gpupool.vllm.hooks.needs import NEEDS  # noqa: E402
from gpupool.vllm.hooks.sources import Sources  # noqa: E402

PACKAGE = Path(SPEC.submodule_search_locations[0])
INSTALLED = Sources(PACKAGE.parent)
ROOM = Path(__file__).resolve().parents[2] / "src" / "gpupool" / "vllm"


def form_here(need: Need) -> tuple[Hook, ...]:
    """The hooks by which this vLLM has it."""
    return next(
        hooks for hooks in need.forms.values() if not any(wrong(hook, INSTALLED) for hook in hooks)
    )


HERE = [(need, hook) for need in NEEDS for hook in form_here(need)]


class Changed(Sources):
    """The installed one, with one node changed in every module that has it."""

    def __init__(self, node: ast.AST, change: Callable[[ast.AST], ast.AST | None]) -> None:
        super().__init__(PACKAGE.parent)
        self._spot = (type(node), getattr(node, "lineno", -1), getattr(node, "col_offset", -1))
        self._text, self._change = ast.unparse(node), change

    def _module(self, name: str) -> ast.Module | None:
        tree = super()._module(name)
        if tree is None:
            return None
        spot, text, change = self._spot, self._text, self._change

        class Changer(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST | None:
                at = (type(node), getattr(node, "lineno", -1), getattr(node, "col_offset", -1))
                if at == spot and ast.unparse(node) == text:
                    return change(node)
                found: ast.AST = self.generic_visit(node)
                return found

        changed: ast.Module = Changer().visit(tree)
        return changed


def of(need: Need, findings: list[Finding]) -> Finding:
    return next(finding for finding in findings if finding.what == need.what)


def test_all_is_there() -> None:
    assert {finding.what: finding.missing for finding in look(INSTALLED) if finding.missing} == {}


class Without(Sources):
    """The installed one, in which nothing has a certain name."""

    def __init__(self, name: str) -> None:
        super().__init__(PACKAGE.parent)
        self._name = name

    def _module(self, name: str) -> ast.Module | None:
        tree = super()._module(name)
        for node in ast.walk(tree) if tree is not None else ():
            for attribute in ("name", "id", "attr", "asname", "value"):
                if getattr(node, attribute, None) == self._name:
                    setattr(node, attribute, "another")
        return tree


@pytest.mark.parametrize("hook", [hook for _, hook in HERE], ids=lambda h: f"{h.module}.{h.name}")
def test_what_is_renamed_is_named(hook: Hook) -> None:
    name = hook.name.rpartition(".")[2]
    assert wrong(hook, Without(name)) == f"{hook.module} has no {hook.name}"


def renamed(hook: Hook, parameter: str) -> Sources:
    """The installed one, in which that function calls a parameter something else."""
    node = INSTALLED.find(hook.module, hook.name)
    assert isinstance(node, ast.FunctionDef)

    def rename(function: ast.AST) -> ast.AST:
        assert isinstance(function, ast.FunctionDef)
        for each in (*function.args.args, *function.args.kwonlyargs):
            each.arg = "another" if each.arg == parameter else each.arg
        return function

    return Changed(node, rename)


@pytest.mark.parametrize(
    "hook", [hook for _, hook in HERE if hook.parameters], ids=lambda h: f"{h.module}.{h.name}"
)
def test_a_parameter_that_is_renamed_is_named(hook: Hook) -> None:
    parameter = hook.parameters[-1]
    assert wrong(hook, renamed(hook, parameter)) == (
        f"{hook.module}.{hook.name} takes no {parameter}"
    )


@pytest.mark.parametrize("name", ["Worker.execute_model", "DefaultModelLoader.create_model"])
def test_what_breaks_the_worker_is_told_from_what_is_lost(name: str) -> None:
    need, hook = next((need, hook) for need, hook in HERE if hook.name == name)
    found = of(need, look(renamed(hook, hook.parameters[0])))
    assert found.missing == (f"{hook.module}.{name} takes no {hook.parameters[0]}",)
    assert (found.status, found.without) == (LOST if need.without else BROKEN, need.without)
    assert is_broken([found]) == (name == "Worker.execute_model")


def test_another_way_of_allocating_is_seen() -> None:
    hook = next(hook for _, hook in HERE if "int8" in hook.says)
    node = INSTALLED.find(hook.module, hook.name)
    assert node is not None

    class Empty(ast.NodeTransformer):
        def visit_Attribute(self, each: ast.Attribute) -> ast.AST:
            self.generic_visit(each)
            each.attr = "empty" if each.attr == "zeros" else each.attr
            return each

    changed = Changed(node, lambda each: Empty().visit(each))
    assert wrong(hook, changed) == f"{hook.module}.{hook.name} says nothing of zeros"


def test_a_method_without_a_door_is_told_of() -> None:
    node = INSTALLED.find("vllm.v1.worker.gpu_worker", "Worker.execute_dummy_batch")

    def rename(function: ast.AST) -> ast.AST:
        assert isinstance(function, ast.FunctionDef)
        function.name = "do_something_new"
        return function

    assert node is not None
    found = look(Changed(node, rename))[-1]
    assert found.status == LOST
    assert "nothing is known of vllm.v1.worker.gpu_worker.Worker.do_something_new" in found.missing


def test_what_is_imported_from_vllm_is_on_the_list() -> None:
    listed = {
        (hook.module, hook.name.partition(".")[0])
        for n in NEEDS
        for f in n.forms.values()
        for hook in f
    }
    modules = {module for module, _ in listed}
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "vllm":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    known = (node.module, alias.name) in listed or whole in modules
                    assert known or whole == "vllm.__version__", f"{path}: {whole}"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpupool.vllm.hooks", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command(tmp_path: Path) -> None:
    done = command()
    assert done.returncode == 0 and done.stdout.count(MET) == len(NEEDS) + 1
    (tmp_path / "vllm").mkdir()
    done = command("--tree", str(tmp_path))
    assert done.returncode == 1
    assert "    there is no module vllm.v1.worker.gpu_worker\n" in done.stdout
    done = command("--tree", str(tmp_path / "vllm"))
    assert done.returncode == 2 and "no package vllm" in done.stderr
