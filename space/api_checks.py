"""What an API call may hold: Gradio passes on whatever JSON came, so every parameter is looked at here."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import gradio as gr

from core.errors import InputError, QuantcardError
from space.views import SORRY, log

T = TypeVar("T")

#: Characters of any text that is asked for, and the largest whole number.
MAX_TEXT = 300
MAX_NUMBER = 1 << 53


def checked(answer: Callable[..., T]) -> Callable[..., T]:
    """``answer`` with every parameter of the type that it names, and every error as a sentence."""
    kinds = get_type_hints(answer)
    names = list(inspect.signature(answer).parameters)

    @functools.wraps(answer)
    def call(*values: Any, **named: Any) -> T:
        try:
            given = dict(zip(names, values, strict=False)) | named
            return answer(**{name: parameter(name, value, kinds[name]) for name, value in given.items()})
        except QuantcardError as refused:
            raise gr.Error(str(refused), print_exception=False) from refused
        except Exception as failure:
            log.exception("an API call failed")
            raise gr.Error(SORRY, print_exception=False) from failure

    return call


def parameter(name: str, value: Any, kind: type) -> Any:
    """A value of ``kind`` (str, bool, int, float).

    Raises:
        InputError: it is something else, or too large.
    """
    if value is None:
        return kind()
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise InputError(f"The parameter {name} is too long: {MAX_TEXT} characters at most.")
        return value.encode("utf-8", "replace").decode()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, float) and is_number and math.isfinite(value) and abs(value) <= MAX_NUMBER:
        whole = value == int(value)
        if kind is float or whole:
            return kind(value)
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    raise InputError(f"The parameter {name} must be {words[kind]}.")
