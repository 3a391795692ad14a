"""Rules of Metal that clang's OpenCL mode does not have, checked on its syntax tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from clang.cindex import CursorKind, TypeKind, conf  # type: ignore[import-untyped]

from .strict_rewrite import PARAMETER_ATTRIBUTES, THREADGROUP_VARIABLE_OUTSIDE_KERNEL

__all__ = ["Outline", "Rules", "outline"]

Cursor = Any
Type = Any

# clang's numbers of address spaces
_UNQUALIFIED = frozenset({0, 5})  # none, as in a template; generic, which stands for none elsewhere
_DEVICE, _THREADGROUP, _CONSTANT = 1, 2, 3

_LAST_BUFFER = 30
_FUNCTIONS = frozenset(
    {
        CursorKind.FUNCTION_DECL,
        CursorKind.FUNCTION_TEMPLATE,
        CursorKind.CXX_METHOD,
        CursorKind.CONSTRUCTOR,
        CursorKind.DESTRUCTOR,
        CursorKind.CONVERSION_FUNCTION,
    }
)
_CLASSES = frozenset(
    {
        CursorKind.STRUCT_DECL,
        CursorKind.CLASS_DECL,
        CursorKind.UNION_DECL,
        CursorKind.CLASS_TEMPLATE,
        CursorKind.CLASS_TEMPLATE_PARTIAL_SPECIALIZATION,
    }
)
_ALIASES = frozenset({CursorKind.TYPEDEF_DECL, CursorKind.TYPE_ALIAS_DECL})
_METHODS = frozenset({CursorKind.CXX_METHOD, CursorKind.CONVERSION_FUNCTION, CursorKind.FUNCTION_TEMPLATE})
_POINTERS = {
    TypeKind.POINTER: "pointer",
    TypeKind.LVALUEREFERENCE: "reference",
    TypeKind.RVALUEREFERENCE: "reference",
}
_ARRAYS = frozenset(
    {
        TypeKind.CONSTANTARRAY,
        TypeKind.INCOMPLETEARRAY,
        TypeKind.VARIABLEARRAY,
        TypeKind.DEPENDENTSIZEDARRAY,
    }
)
_CASTS = frozenset(
    {
        CursorKind.CSTYLE_CAST_EXPR,
        CursorKind.CXX_CONST_CAST_EXPR,
        CursorKind.CXX_FUNCTIONAL_CAST_EXPR,
        CursorKind.CXX_REINTERPRET_CAST_EXPR,
        CursorKind.CXX_STATIC_CAST_EXPR,
    }
)
_FORBIDDEN = {
    CursorKind.ASM_STMT: "'asm' statements are not supported in Metal",
    CursorKind.CXX_CATCH_STMT: "exceptions are not supported in Metal",
    CursorKind.CXX_DELETE_EXPR: "'delete' is not supported in Metal",
    CursorKind.CXX_DYNAMIC_CAST_EXPR: "'dynamic_cast' is not supported in Metal",
    CursorKind.CXX_NEW_EXPR: "'new' is not supported in Metal",
    CursorKind.CXX_THROW_EXPR: "exceptions are not supported in Metal",
    CursorKind.CXX_TRY_STMT: "exceptions are not supported in Metal",
    CursorKind.CXX_TYPEID_EXPR: "'typeid' is not supported in Metal",
    CursorKind.GOTO_STMT: "'goto' is not supported in Metal",
    CursorKind.INDIRECT_GOTO_STMT: "'goto' is not supported in Metal",
    CursorKind.LAMBDA_EXPR: "lambda expressions are not supported before Metal 3.2",
}
_UNSUPPORTED_TYPES = {TypeKind.DOUBLE: "double", TypeKind.LONGDOUBLE: "long double"}
_ATTRIBUTE = re.compile(r"(?P<name>\w+)(?:\((?P<index>.*)\))?")


class Rules:
    """Walks the syntax tree of one text and reports what Metal forbids."""

    def __init__(
        self, report: Callable[[int, str], None], is_threadgroup_variable: Callable[[int], bool], text: str
    ) -> None:
        """Prepares a walk.

        Args:
            report: takes an offset in ``text`` and a message.
            is_threadgroup_variable: whether the name at an offset in ``text`` is that of a variable in threadgroup
                memory, which is a reference by now.
            text: what clang read.
        """
        self._report = report
        self._is_threadgroup_variable = is_threadgroup_variable
        self._text = text
        self._kernels: dict[str, str] = {}  # parameter types by name
        self._calls: dict[str, list[tuple[str, Cursor]]] = {}  # function -> callees and the calls
        self._names: dict[str, str] = {}
        self._kernel_extents: list[range] = []

    def walk(self, unit: Any, is_own: Callable[[Cursor], bool]) -> None:
        """Checks every declaration of a translation unit for which ``is_own`` holds."""
        for cursor in unit.cursor.get_children():
            if is_own(cursor):
                self._visit(cursor, None, in_kernel=False)
        self._recursion()

    def is_in_kernel(self, offset: int) -> bool:
        """Whether an offset in the text lies in a kernel function."""
        return any(offset in extent for extent in self._kernel_extents)

    def _visit(self, cursor: Cursor, function: str | None, *, in_kernel: bool) -> None:
        kind = cursor.kind
        if kind in _FUNCTIONS:
            function, in_kernel = self._function(cursor)
        elif kind is CursorKind.VAR_DECL:
            self._variable(cursor, in_kernel=in_kernel)
        elif kind in (CursorKind.PARM_DECL, CursorKind.FIELD_DECL):
            self._type(cursor, cursor.type)
        elif kind in _ALIASES:
            self._type(cursor, cursor.underlying_typedef_type)
        elif kind in _CASTS:
            self._type(cursor, cursor.type)
        elif kind is CursorKind.CALL_EXPR and function is not None:
            self._call(cursor, function)
        elif kind in _FORBIDDEN:
            self._report(cursor.location.offset, _FORBIDDEN[kind])
            if kind is CursorKind.LAMBDA_EXPR:
                return
        for child in cursor.get_children():
            self._visit(child, function, in_kernel=in_kernel)

    # -- Types ---------------------------------------------------------------------------------------------------------

    def _type(self, cursor: Cursor, written: Type) -> None:
        """Reports a pointer or reference that does not say where it points, at any depth."""
        while True:
            kind = written.kind
            if kind in _POINTERS:
                pointee = written.get_pointee()
                space = _address_space(pointee)
                pointee_kind = pointee.kind
                if pointee_kind is TypeKind.AUTO or pointee_kind is TypeKind.FUNCTIONPROTO:
                    return
                forwarding = kind is TypeKind.RVALUEREFERENCE and pointee_kind is TypeKind.UNEXPOSED
                if space in _UNQUALIFIED and not forwarding:
                    what = _POINTERS[kind]
                    self._report(
                        cursor.location.offset,
                        f"{what} type must have explicit address space qualifier: "
                        "device, threadgroup, constant or thread",
                    )
                    return
                written = pointee
            elif kind in _ARRAYS:
                written = written.element_type
            else:
                return

    # -- Variables -----------------------------------------------------------------------------------------------------

    def _variable(self, cursor: Cursor, *, in_kernel: bool) -> None:
        offset = cursor.location.offset
        if self._is_threadgroup_variable(offset):
            if not in_kernel:
                self._report(offset, THREADGROUP_VARIABLE_OUTSIDE_KERNEL)
            return
        self._type(cursor, cursor.type)
        parent = cursor.semantic_parent.kind
        space = _address_space(cursor.type)
        if parent in _FUNCTIONS:
            if cursor.storage_class.name == "STATIC" and space != _CONSTANT:
                self._report(offset, "variables in function scope cannot be declared static")
        elif space != _CONSTANT:
            what = "static data member" if parent in _CLASSES else "program scope variable"
            self._report(offset, f"{what} must reside in constant address space")

    # -- Functions -----------------------------------------------------------------------------------------------------

    def _function(self, cursor: Cursor) -> tuple[str, bool]:
        """Checks a function's own declaration; returns its key in the call graph and whether it is a kernel."""
        key = cursor.canonical.get_usr()
        self._names[key] = cursor.spelling
        is_kernel = False
        parameters = []
        for child in cursor.get_children():
            if child.kind is CursorKind.ANNOTATE_ATTR and child.spelling == "kernel":
                is_kernel = True
            elif child.kind is CursorKind.PARM_DECL:
                parameters.append(child)
        self._type(cursor, cursor.result_type)
        is_member = cursor.semantic_parent.kind in _CLASSES
        if is_kernel and cursor.is_definition():
            self._kernel(cursor, parameters, is_member=is_member)
        elif cursor.spelling == "main":
            self._report(cursor.location.offset, "a function that is no kernel cannot be called 'main'")
        return key, is_kernel

    def _kernel(self, cursor: Cursor, parameters: list[Cursor], *, is_member: bool) -> None:
        offset = cursor.location.offset
        name = cursor.spelling
        self._kernel_extents.append(range(cursor.extent.start.offset, cursor.extent.end.offset))
        if is_member:
            self._report(offset, f"kernel {name!r} cannot be a member function")
        if cursor.result_type.get_canonical().kind is not TypeKind.VOID:
            self._report(offset, f"invalid return type '{_spelling(cursor.result_type)}' for kernel function {name!r}")
        types = cursor.type.spelling
        scope = f"{cursor.semantic_parent.get_usr()}/{name}"
        if self._kernels.setdefault(scope, types) != types:
            self._report(offset, f"kernel function {name!r} cannot be overloaded")
        taken: dict[tuple[str, int], str] = {}
        for parameter in parameters:
            self._parameter(parameter, taken)

    def _parameter(self, parameter: Cursor, taken: dict[tuple[str, int], str]) -> None:
        """Checks one parameter of a kernel; ``taken`` maps (attribute, index) to the parameter that has it."""
        offset = parameter.location.offset
        name, written = parameter.spelling, parameter.type
        attribute, index = "", None
        for child in parameter.get_children():
            if child.kind is CursorKind.ANNOTATE_ATTR:
                found = _ATTRIBUTE.fullmatch(child.spelling.replace("__local", "threadgroup"))
                if found and found["name"] in PARAMETER_ATTRIBUTES:
                    attribute, index = found["name"], found["index"]
        if index is not None and index.rstrip("uU").isdigit():
            self._binding(parameter, attribute, int(index.rstrip("uU")), taken)

        allowed = PARAMETER_ATTRIBUTES.get(attribute, ())
        if allowed:
            spelled = written.get_canonical().spelling
            names = {_canonical_name(spelling) for spelling in allowed}
            if _canonical_name(spelled.replace("__private", "").replace("const", "").strip()) not in names:
                self._report(
                    offset,
                    f"type '{_spelling(written)}' is not valid for attribute '{attribute}' of parameter {name!r}; "
                    f"accepted: {', '.join(allowed)}",
                )
            return
        if written.kind in _POINTERS or written.kind in _ARRAYS:
            space = _address_space(written.get_pointee() if written.kind in _POINTERS else written)
            if space in _UNQUALIFIED:
                return  # reported as any pointer without one
            expected = {_THREADGROUP} if attribute == "threadgroup" else {_DEVICE, _CONSTANT}
            if attribute == "":
                expected |= {_THREADGROUP}
            if space not in expected:
                self._report(
                    offset,
                    f"invalid address space qualification for {attribute or 'kernel'} parameter {name!r}: "
                    "a buffer is device or constant, and [[threadgroup(n)]] goes with threadgroup",
                )
        elif attribute in ("", "buffer", "threadgroup") and _is_data(written):
            self._report(
                offset,
                f"invalid type '{_spelling(written)}' for parameter {name!r} of a kernel function: pass a buffer "
                "(a device or constant pointer or reference), or name a built-in value such as "
                "[[thread_position_in_grid]]",
            )

    def _binding(self, parameter: Cursor, attribute: str, index: int, taken: dict[tuple[str, int], str]) -> None:
        offset = parameter.location.offset
        if attribute in ("buffer", "threadgroup") and index > _LAST_BUFFER:
            words = f"'{attribute}' attribute parameter is out of bounds: {index} is not between 0 and {_LAST_BUFFER}"
            self._report(offset, words)
        other = taken.setdefault((attribute, index), parameter.spelling)
        if other != parameter.spelling:
            self._report(offset, f"cannot reserve '{attribute}' resource location at index {index}: {other!r} has it")

    # -- Calls ---------------------------------------------------------------------------------------------------------

    def _call(self, call: Cursor, function: str) -> None:
        callee = call.referenced
        if callee is not None and callee.kind in _FUNCTIONS:
            template = conf.lib.clang_getSpecializedCursorTemplate(callee)
            if template is not None:
                callee = template
        else:
            callee = _only_candidate(call)
        if callee is None:
            return
        for child in callee.get_children():
            if child.kind is CursorKind.ANNOTATE_ATTR and child.spelling == "kernel":
                self._report(call.location.offset, f"kernel function {callee.spelling!r} cannot be called")
        if not self._names_template_arguments(call):
            self._calls.setdefault(function, []).append((callee.canonical.get_usr(), call))

    def _names_template_arguments(self, call: Cursor) -> bool:
        """Whether a call reads ``f<...>(...)``: such a call may well be of another function than the caller."""
        for child in call.get_children():
            return self._text[child.extent.start.offset : child.extent.end.offset].rstrip().endswith(">")
        return False

    def _recursion(self) -> None:
        """Reports each call by which a function may come to run while it already runs."""
        for function, calls in self._calls.items():
            for callee, call in calls:
                path = self._path(callee, function)
                if path is not None:
                    chain = ", which calls ".join(repr(self._names[key]) for key in path)
                    words = "itself" if callee == function else chain
                    self._report(
                        call.location.offset,
                        f"recursive function call: {self._names[function]!r} calls {words}",
                    )

    def _path(self, start: str, goal: str) -> list[str] | None:
        """The functions on a shortest chain of calls from ``start`` to ``goal``."""
        previous: dict[str, str | None] = {start: None}
        queue = [start]
        for key in queue:
            if key == goal:
                path = [key]
                while (before := previous[path[0]]) is not None:
                    path.insert(0, before)
                return path
            for callee, _ in self._calls.get(key, ()):
                if callee not in previous:
                    previous[callee] = key
                    queue.append(callee)
        return None


@dataclass
class Outline:
    """What a text declares outside functions, as far as it asks for edits.

    Attributes:
        vector_names: names for types of vectors.
        methods: member functions that name no address space, which Metal takes to be the thread's.
        constructors: all of them.
    """

    vector_names: set[str] = field(default_factory=set)
    methods: list[Cursor] = field(default_factory=list)
    constructors: list[Cursor] = field(default_factory=list)

    def add(self, cursor: Cursor) -> None:
        """Adds a declaration and those in it."""
        kind = cursor.kind
        if kind in _CLASSES or kind is CursorKind.NAMESPACE:
            for child in cursor.get_children():
                self.add(child)
        elif kind in _ALIASES:
            if cursor.underlying_typedef_type.get_canonical().kind is TypeKind.EXTVECTOR:
                self.vector_names.add(cursor.spelling)
        elif kind is CursorKind.CONSTRUCTOR or _is_constructor_template(cursor):
            self.constructors.append(cursor)
        elif kind in _METHODS and not cursor.is_static_method():
            qualifiers = cursor.type.spelling.rpartition(")")[2]
            if "__generic" in qualifiers:
                self.methods.append(cursor)


def outline(unit: Any, is_own: Callable[[Cursor], bool]) -> Outline:
    """The outline of the declarations of a translation unit for which ``is_own`` holds."""
    result = Outline()
    for cursor in unit.cursor.get_children():
        if is_own(cursor):
            result.add(cursor)
    return result


def _is_constructor_template(cursor: Cursor) -> bool:
    if cursor.kind is not CursorKind.FUNCTION_TEMPLATE:
        return False
    parent = cursor.semantic_parent
    return parent.kind in _CLASSES and cursor.spelling.partition("<")[0] == parent.spelling.partition("<")[0]


def _address_space(written: Type) -> int:
    """The address space of a type as written; of an array, that of its elements."""
    while written.kind in _ARRAYS:
        written = written.element_type
    return int(written.get_address_space())


def _spelling(value: Type) -> str:
    """How the type of a value is written, without the space that every value is in."""
    return re.sub(r"^(const )?__private (?!.*[*&])", r"\1", value.spelling)


def _is_data(written: Type) -> bool:
    """Whether a type is plain data: no resource such as a texture, and no parameter of a template."""
    canonical = written.get_canonical()
    if canonical.kind is TypeKind.UNEXPOSED:
        return False
    declaration = canonical.get_declaration()
    return not declaration.spelling.startswith(("texture", "depth", "sampler"))


def _canonical_name(spelling: str) -> str:
    """One name for each of the spellings of an unsigned scalar or vector type."""
    match = re.match(r"(?:unsigned (?P<long>int|short)|u(?P<short>int|short))", spelling)
    if match is None:
        return spelling
    count = re.search(r"\((\d)\)|(\d)$", spelling)
    return f"u{match['long'] or match['short']}{count[1] or count[2] if count else ''}"


def _only_candidate(call: Cursor) -> Cursor | None:
    """The one function that a call in a template can mean, judged by name and number of arguments."""
    reference = next(_references(call), None)
    if reference is None:
        return None
    count = len(list(call.get_arguments()))
    candidates = []
    for index in range(conf.lib.clang_getNumOverloadedDecls(reference)):
        candidate = conf.lib.clang_getOverloadedDecl(reference, index)
        parameters = [child for child in candidate.get_children() if child.kind is CursorKind.PARM_DECL]
        if len(parameters) == count and not any("..." in parameter.type.spelling for parameter in parameters):
            candidates.append(candidate)
    return candidates[0] if len(candidates) == 1 else None


def _references(call: Cursor) -> Iterator[Cursor]:
    """The overload sets that the callee of a call names."""
    for child in call.get_children():
        if child.kind is CursorKind.OVERLOADED_DECL_REF:
            yield child
        elif child.kind in (CursorKind.UNEXPOSED_EXPR, CursorKind.DECL_REF_EXPR, CursorKind.MEMBER_REF_EXPR):
            yield from _references(child)
        return
