"""How compiled code is put together: a helper becomes LLVM IR and no more; a door takes the IR of
everything below it into one module, which LLVM optimises and turns into machine code once.

Left to itself numba does that to each helper, with whatever lies below it, and writes two wrappers
for calls from Python that never come; that took three quarters of the time of a first start.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from numba.core import types
from numba.core.codegen import CodeLibrary, JITCodeLibrary, RuntimeLinker
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.environment import lookup_environment
from numba.core.registry import CPUDispatcher

ENVIRONMENT_PREFIX: Final = "_ZN08NumbaEnv"


class HelperLibrary(JITCodeLibrary):
    """The IR of one helper, and the libraries of what it calls. It has no machine code."""

    def finalize(self) -> None:
        """Take nothing more."""
        JITCodeLibrary._raise_if_finalized(self)
        self._finalized = True


def below(libraries: list[CodeLibrary]) -> Iterator[CodeLibrary]:
    """Every library that `libraries` need, once. Numba's own ones hold what they need already."""
    seen = set()
    waiting = list(libraries)
    while waiting:
        library = waiting.pop()
        if library in seen:
            continue
        seen.add(library)
        yield library
        if isinstance(library, HelperLibrary):
            waiting += library._linking_libraries


class DoorLibrary(JITCodeLibrary):
    """A door and everything below it, in one module."""

    def finalize(self) -> None:
        """Link, optimise, make machine code. Raises NotImplementedError for calls in a circle."""
        self._linking_libraries = list(below(self._linking_libraries))
        JITCodeLibrary.finalize(self)

    def _optimize_final_module(self) -> None:
        # Numba would look for such a function's own machine code, when it is called.
        circle = RuntimeLinker.PREFIX
        if any(
            variable.name.startswith(circle) for variable in self._final_module.global_variables
        ):
            raise NotImplementedError(
                f"{self.name}: compiled functions call each other in a circle"
            )
        JITCodeLibrary._optimize_final_module(self)

    def _finalize_specific(self) -> None:
        JITCodeLibrary._finalize_specific(self)
        # Numba does this when it makes the machine code of each helper.
        for variable in self._final_module.global_variables:
            if not variable.name.startswith(ENVIRONMENT_PREFIX):
                continue
            if environment := lookup_environment(variable.name):
                self.codegen.set_env(variable.name, environment)


class HelperPipeline(Compiler):
    """Numba's passes, into a library of our own kind."""

    library_class: type[CodeLibrary] = HelperLibrary

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile one function."""
        self.state.library = self.library_class(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return Compiler.compile_extra(self, func)


class DoorPipeline(HelperPipeline):
    """The same for a function that is called from outside compiled code."""

    library_class = DoorLibrary


class HelperCompiler(_FunctionCompiler):  # type: ignore[misc]
    """Compiles for callers that are compiled themselves."""

    def _customize_flags(self, flags: Any) -> Any:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        return flags

    def _compile_core(self, args: Any, return_type: Any) -> Any:
        # Callers look for it by its entry point. There is none, so this stands for it.
        result = super()._compile_core(args, return_type)._replace(entry_point=object())
        context = self.targetdescr.target_context
        context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


def door_of(result: Any) -> tuple[Any, Any]:
    """What Python calls to run a helper, and the machine code of it."""
    helper, context = result.library, result.target_context
    library: Any = cast(Any, DoorLibrary)(helper.codegen, helper.name)
    library._final_module.link_in(helper._final_module, preserve=True)
    library._linking_libraries = list(helper._linking_libraries)
    context.create_cpython_wrapper(
        library, result.fndesc, result.environment, result.call_helper, release_gil=True
    )
    return context.get_executable(library, result.fndesc, result.environment), library


class Helper(CPUDispatcher):
    """A function for compiled callers, which gets a door of its own when Python calls it."""

    def __init__(
        self, py_func: Callable[..., Any], locals: Any = None, targetoptions: Any = None
    ) -> None:
        CPUDispatcher.__init__(self, py_func, locals, targetoptions)
        self._compiler = HelperCompiler(
            py_func, self.targetdescr, self.targetoptions, self.locals, HelperPipeline
        )
        # By types of arguments. The dispatcher's own table does not keep what it points to.
        self.doors: dict[Any, tuple[Any, Any]] = {}

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Which overload a compiled call is of.

        Numba would compile a helper once more for every constant it is called with; LLVM, which
        inlines it, makes as much of the constant without that.
        """
        plain = {name: types.unliteral(kind) for name, kind in kws.items()}
        dispatcher: Any = super()
        return dispatcher.get_call_template(tuple(types.unliteral(kind) for kind in args), plain)

    def add_overload(self, cres: CompileResult) -> None:
        """Keep it for compiled callers only."""
        result: Any = cres
        self.overloads[tuple(result.signature.args)] = result

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        dispatcher: Any = super()
        entry_point = dispatcher._compile_for_args(*args, **kws)
        compiled: list[Any] = list(self.overloads.values())
        (result,) = (its for its in compiled if its.entry_point is entry_point)
        taken = tuple(result.signature.args)
        with global_compiler_lock:
            self.doors[taken] = door_of(result)
        function, _ = self.doors[taken]
        dispatcher._insert([its._code for its in taken], function, False)
        return function

    def inspect_asm(self, signature: Any = None) -> Any:
        """The machine code that Python calls, by types of arguments."""
        return {taken: library.get_asm_str() for taken, (_, library) in self.doors.items()}
